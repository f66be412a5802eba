"""Build the two stand-in base models: `python -m playground.build_bases [--rebuild]`.

    bases/tiny-clip    CLIPVisionModel + preprocessor_config.json
    bases/tiny-llama   LlamaForCausalLM + tokenizer

They are shipped with the repository, so nobody needs to run this; it is here so that anybody can. About half an hour on
one CPU core. A killed run goes on from its last checkpoint. Held-out scores are written to `bases/scores.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel, GenerationConfig, LlamaForCausalLM, PreTrainedModel

from . import pretrain_language, pretrain_vision
from .files import write_json
from .pretrain_language import BOS, EOS, LanguageRecipe
from .pretrain_vision import CLIP_MEAN, CLIP_STD, VisionRecipe
from .render import IMAGE_SIZE
from .tokenizer import load_pieces, train_tokenizer

BASES = Path(__file__).resolve().parent / "bases"


def preprocessor_config() -> dict[str, Any]:
    """Configuration of CLIPImageProcessor at the tower's size."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }


def _ship(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a temporary folder with `write`, then put it in place of `folder`."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _save_half(model: PreTrainedModel, folder: Path) -> None:
    """Save a bf16 copy; the model itself is left as it is."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates files only the owner can read


def build_clip(out: Path, work_dir: Path, recipe: VisionRecipe) -> dict[str, float]:
    """Train and ship the vision tower; returns its held-out scores, measured on the weights as shipped."""
    task = pretrain_vision.train_vision(recipe, work_dir)

    def write(folder: Path) -> None:
        _save_half(task.tower, folder)
        write_json(folder / "preprocessor_config.json", preprocessor_config())

    _ship(out / "tiny-clip", write)
    task.tower = CLIPVisionModel.from_pretrained(out / "tiny-clip", dtype=torch.float32)
    return pretrain_vision.score(task)


def build_llama(out: Path, work_dir: Path, recipe: LanguageRecipe) -> dict[str, float]:
    """Train and ship tokenizer and language model; returns held-out scores, measured on the weights as shipped."""
    tokenizer_dir = work_dir / "tokenizer"
    train_tokenizer(tokenizer_dir)
    pieces = load_pieces(tokenizer_dir)
    model = pretrain_language.train_language(recipe, pieces, work_dir)

    def write(folder: Path) -> None:
        model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0)
        _save_half(model, folder)
        for file in sorted(tokenizer_dir.iterdir()):
            shutil.copy(file, folder / file.name)

    _ship(out / "tiny-llama", write)
    shipped = LlamaForCausalLM.from_pretrained(out / "tiny-llama", dtype=torch.float32)
    return pretrain_language.score(shipped, pretrain_language.Writer(pieces), scenes=400)


def build(out: Path, work_dir: Path, only: str | None = None) -> None:
    """Build what is asked for and update `scores.json` beside it."""
    path = out / "scores.json"
    scores = json.loads(path.read_text()) if path.exists() else {}
    out.mkdir(parents=True, exist_ok=True)
    if only in (None, "clip"):
        scores["tiny-clip"] = {"recipe": asdict(VisionRecipe()), "held_out": build_clip(out, work_dir, VisionRecipe())}
        write_json(path, scores)
    if only in (None, "llama"):
        recipe = LanguageRecipe()
        scores["tiny-llama"] = {"recipe": asdict(recipe), "held_out": build_llama(out, work_dir, recipe)}
        write_json(path, scores)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m playground.build_bases", description=__doc__.split("\n")[0])
    parser.add_argument("--rebuild", action="store_true", help="train again although both models are there")
    parser.add_argument("--only", choices=("clip", "llama"), help="build one of the two")
    parser.add_argument("--out", type=Path, default=BASES)
    parser.add_argument("--work-dir", type=Path, default=BASES.parent / "data" / "build", help="checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="1 makes the weights reproducible to the bit")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    there = all((args.out / name / "model.safetensors").exists() for name in ("tiny-clip", "tiny-llama"))
    if there and not args.rebuild:
        sys.stdout.write(f"both models are in {args.out}; --rebuild makes them again\n")
        return
    build(args.out, args.work_dir, args.only)
    shutil.rmtree(args.work_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
