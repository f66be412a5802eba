"""Merge a LoRA directory into its base and save the whole model."""

import argparse

from llava.mm_utils import get_model_name_from_path


def merge_lora(args: argparse.Namespace) -> None:
    """Open `args.model_path` on `args.model_base` on the CPU and save model (tower included) and tokenizer."""
    from llava.model.builder import load_pretrained_model
    from llava.tokenizer_files import save_tokenizer

    name = get_model_name_from_path(args.model_path)
    tokenizer, model, _, _ = load_pretrained_model(args.model_path, args.model_base, name, device_map="cpu")
    model.save_pretrained(args.save_model_path)
    save_tokenizer(tokenizer, args.save_model_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=str, required=True)
    parser.add_argument("--model-base", type=str, required=True)
    parser.add_argument("--save-model-path", type=str, required=True)
    merge_lora(parser.parse_args())
