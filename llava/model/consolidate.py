"""Load a checkpoint in float16 and save it as one; the result does not contain the vision tower.

python -m llava.model.consolidate --src S --dst D
"""

import argparse


def consolidate_ckpt(src_path: str, dst_path: str) -> None:
    """Rewrite the checkpoint at `src_path`, any shards and file kinds, to `dst_path`."""
    import torch

    from llava.model.families import open_language_model
    from llava.model.utils import auto_upgrade
    from llava.tokenization import load_tokenizer
    from llava.tokenizer_files import save_tokenizer

    print("Loading model")
    auto_upgrade(src_path)
    model = open_language_model(src_path, torch.float16)
    model.save_pretrained(dst_path)
    save_tokenizer(load_tokenizer(src_path), dst_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", type=str, required=True)
    parser.add_argument("--dst", type=str, required=True)
    args = parser.parse_args()
    consolidate_ckpt(args.src, args.dst)
