"""target = base + delta, tensor by tensor.

python -m llava.model.apply_delta --base-model-path B --target-model-path T --delta-path D
"""

import argparse


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write the model `base + delta` with the delta's tokenizer to `target_model_path`, in float16.

    Raises:
        ValueError: the delta has a tensor that the base lacks and that is not part of the vision modules, or shapes
            differ elsewhere than in the embedding tables.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llava.model.delta import combine
    from llava.model.families import open_language_model
    from llava.tokenization import load_tokenizer
    from llava.tokenizer_files import save_tokenizer

    print("Loading base model")
    base = AutoModelForCausalLM.from_pretrained(base_model_path, dtype=torch.float16)
    print("Loading delta")
    delta = open_language_model(delta_path, torch.float16)
    print("Applying delta")
    combine(delta, base, sign=1)
    print("Saving target model")
    delta.save_pretrained(target_model_path)
    save_tokenizer(load_tokenizer(delta_path), target_model_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model-path", type=str, required=True)
    parser.add_argument("--target-model-path", type=str, required=True)
    parser.add_argument("--delta-path", type=str, required=True)
    args = parser.parse_args()
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)
