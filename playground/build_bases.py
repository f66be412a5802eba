"""Build the two stand-in base models: `python -m playground.build_bases [--rebuild]`.

    bases/tiny-clip    CLIPVisionModel + preprocessor_config.json
    bases/tiny-llama   LlamaForCausalLM + tokenizer

They are shipped with the repository; this program documents how they were made. It takes about half an hour on one CPU
core. A killed run resumes from its last checkpoint. Held-out scores are written to `bases/scores.json`.
"""

import argparse
import shutil
import sys
from pathlib import Path

BASES = Path(__file__).resolve().parent / "bases"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m playground.build_bases", description=__doc__.split("\n")[0])
    parser.add_argument("--rebuild", action="store_true", help="train again although both models exist")
    parser.add_argument("--only", choices=("clip", "llama"), help="build one of the two")
    parser.add_argument("--out", type=Path, default=BASES)
    parser.add_argument("--work-dir", type=Path, default=BASES.parent / "data" / "build", help="checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="1 makes the weights reproducible to the bit")
    args = parser.parse_args(argv)
    exist = all((args.out / name / "model.safetensors").exists() for name in ("tiny-clip", "tiny-llama"))
    if exist and not args.rebuild:
        sys.stdout.write(f"both models are in {args.out}; --rebuild makes them again\n")
        return

    import torch

    from .pretraining.bases import build

    torch.set_num_threads(args.threads)
    build(args.out, args.work_dir, args.only)
    shutil.rmtree(args.work_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
