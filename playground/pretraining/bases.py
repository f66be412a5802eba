"""Train the two tiny base models and store them in `playground/bases`."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, GenerationConfig, LlamaForCausalLM, PreTrainedModel

from ..files import write_json
from ..world.render import IMAGE_SIZE
from ..world.tokenizer import load_pieces, train_tokenizer
from . import language_model, vision_tower
from .language_model import BOS, EOS, LanguageRecipe
from .vision_tower import CLIP_MEAN, CLIP_STD, VisionRecipe

WEIGHTS = "model.safetensors"


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
    (folder / WEIGHTS).chmod(0o644)  # safetensors creates files only the owner can read


def _add_prefix(path: Path, prefix: str) -> None:
    """Store CLIP's keys as `openai/clip-vit-*` do; transformers 4 initialises entries without the prefix at random."""
    state = {prefix + key: value for key, value in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)


def build_clip(out: Path, work_dir: Path, recipe: VisionRecipe) -> dict[str, float]:
    """Train and ship the vision tower; returns its held-out scores, measured on the weights as shipped."""
    task = vision_tower.train_vision(recipe, work_dir)

    def write(folder: Path) -> None:
        _save_half(task.tower, folder)
        _add_prefix(folder / WEIGHTS, "vision_model.")
        write_json(folder / "preprocessor_config.json", preprocessor_config())

    _ship(out / "tiny-clip", write)
    task.tower = CLIPVisionModel.from_pretrained(out / "tiny-clip", dtype=torch.float32)
    return vision_tower.score(task)


def build_llama(out: Path, work_dir: Path, recipe: LanguageRecipe) -> dict[str, float]:
    """Train and ship tokenizer and language model; returns held-out scores, measured on the weights as shipped."""
    tokenizer_dir = work_dir / "tokenizer"
    train_tokenizer(tokenizer_dir)
    pieces = load_pieces(tokenizer_dir)
    model = language_model.train_language(recipe, pieces, work_dir)

    def write(folder: Path) -> None:
        model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0)
        _save_half(model, folder)
        for file in sorted(tokenizer_dir.iterdir()):
            shutil.copy(file, folder / file.name)

    _ship(out / "tiny-llama", write)
    shipped = LlamaForCausalLM.from_pretrained(out / "tiny-llama", dtype=torch.float32)
    return language_model.score(shipped, language_model.Writer(pieces), scenes=400)


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
