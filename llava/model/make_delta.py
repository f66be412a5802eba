"""delta = target - base, tensor by tensor.

python -m llava.model.make_delta --base-model-path B --target-model-path T --delta-path D [--hub-repo-id ID]
"""

import argparse


def make_delta(base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None) -> None:
    """Write `target - base` with the target's tokenizer to `delta_path`, in float16; push it if a repository is named.

    Raises:
        ValueError: see `combine`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llava.model.delta import combine
    from llava.model.families import open_language_model
    from llava.model.utils import auto_upgrade
    from llava.tokenization import load_tokenizer
    from llava.tokenizer_files import save_tokenizer

    print("Loading base model")
    base = AutoModelForCausalLM.from_pretrained(base_model_path, dtype=torch.float16)
    print("Loading target model")
    auto_upgrade(target_model_path)
    target = open_language_model(target_model_path, torch.float16)
    print("Calculating delta")
    combine(target, base, sign=-1)
    print("Saving delta")
    push = {"push_to_hub": True, "repo_id": hub_repo_id} if hub_repo_id else {}
    target.save_pretrained(delta_path, **push)
    save_tokenizer(load_tokenizer(target_model_path), delta_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model-path", type=str, required=True)
    parser.add_argument("--target-model-path", type=str, required=True)
    parser.add_argument("--delta-path", type=str, required=True)
    parser.add_argument("--hub-repo-id", type=str, default=None)
    args = parser.parse_args()
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)
