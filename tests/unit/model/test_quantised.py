"""4- and 8-bit language models with a full-precision connector and tower (bitsandbytes, on the CPU)."""

import logging
from pathlib import Path

import pytest
import torch

from llava.model.builder import load_pretrained_model
from tests.conftest import REPOSITORY
from tests.support.training import run_training

BASES = REPOSITORY / "playground/bases"


@pytest.mark.parametrize("option", ["load_4bit", "load_8bit"])
def test_quantised_loading(option: str, tmp_path: Path, llava_vectors: Path) -> None:
    """Quantisation goes around connector and tower, and the answers' logits stay near the full model's."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    run_training(
        tmp_path, "--model_name_or_path", str(BASES / "tiny-llama"), "--vision_tower", str(BASES / "tiny-clip"),
        "--version", "v1", "--data_path", "train/data.json", "--mm_projector_type", "acformer", "--max_steps", "1",
        "--mm_num_visual_tokens", "17", "--mm_resampler_depth", "1", "--save_strategy", "no",
    )  # fmt: skip
    options = {"device": "cpu", "dtype": torch.float32}
    full = load_pretrained_model(str(tmp_path), None, "llava", **options)[1]
    quantised = load_pretrained_model(str(tmp_path), None, "llava", **{option: True}, **options)[1]
    kinds = {name: type(module).__name__ for name, module in quantised.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] in ("Linear4bit", "Linear8bitLt")
    assert kinds["model.mm_projector.mlp.0"] == "Linear" and kinds["lm_head"] == "LanguageHead"
    ids = torch.tensor([[1, 5, 6, -200, 7, 8]])
    images = torch.zeros(1, 3, 96, 96)
    with torch.no_grad():
        a, b = (m(ids, images=images).logits.flatten() for m in (full, quantised))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9
    assert quantised.generate(ids, images=images, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_qlora_trains_adapters_and_connector(tmp_path: Path, llava_vectors: Path) -> None:
    trainer = run_training(
        tmp_path, "--model_name_or_path", str(BASES / "tiny-llama"), "--vision_tower", str(BASES / "tiny-clip"),
        "--version", "v1", "--data_path", "train/data.json", "--mm_projector_type", "acformer", "--max_steps", "2",
        "--mm_num_visual_tokens", "17", "--mm_resampler_depth", "1", "--save_strategy", "no", "--bits", "4",
        "--lora_enable", "True", "--lora_r", "4", "--packing", "True",
    )  # fmt: skip
    extras = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    assert extras and all("mm_projector" in key for key in extras)
    moved = [p for n, p in trainer.model.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    assert moved
