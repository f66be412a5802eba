"""Every connector inside a model: two training stages, LoRA, 4 bits, crops, several images, saving and opening."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.builder import load_pretrained_model
from tests.conftest import REPOSITORY
from tests.support.connectors import CONNECTOR_NAMES, TOKENS, flags
from tests.support.training import losses_of, run_training

STEP = ["--save_strategy", "no", "--max_steps", "1"]
STAGE1 = ["--version", "plain", "--data_path", "train/data_plain.json", "--tune_mm_mlp_adapter", "True", *STEP]
STAGE2 = ["--version", "v1", "--data_path", "train/data.json", "--group_by_modality_length", "True", *STEP]
BASES = REPOSITORY / "playground/bases"
CPU = {"device": "cpu", "dtype": torch.float32}


def open_model(path: Path, base: str | None = None, **options: Any) -> Any:
    return load_pretrained_model(str(path), base, "llava", **CPU, **options)[1]


@torch.no_grad()
def logits(model: Any, images: torch.Tensor | None = None) -> torch.Tensor:
    """Two images in one row."""
    model.eval()
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) if images is None else images
    return model(torch.tensor([[1, 300, -200, 13, -200, 301]]), images=images).logits


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_both_stages_and_opening_again(name: str, tmp_path: Path, llava_vectors: Path) -> None:
    first = run_training(tmp_path / "llava-first", *STAGE1, *flags(name))
    opened = open_model(tmp_path / "llava-first", "assets/base-llama")
    torch.testing.assert_close(logits(opened), logits(first.model), rtol=0, atol=1e-5)

    adapter = ["--pretrain_mm_mlp_adapter", str(tmp_path / "llava-first/mm_projector.bin")]
    second = run_training(tmp_path / "second", *STAGE2, *flags(name), *adapter)
    assert all(torch.isfinite(torch.tensor(losses_of(second))))
    opened = open_model(tmp_path / "second")
    out = logits(opened)
    torch.testing.assert_close(out, logits(second.model), rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "second/config.json").read_text())
    tokens = TOKENS[name][1]
    assert config["mm_projector_type"] == name
    assert config["mm_num_visual_tokens"] == opened.num_visual_tokens == tokens
    assert out.shape[1] == 4 + 2 * tokens


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_lora(name: str, tmp_path: Path, llava_vectors: Path) -> None:
    lora = ["--lora_enable", "True", "--lora_r", "4", "--mm_projector_lr", "1e-3"]
    trained = run_training(tmp_path / "llava-lora", *STAGE2, *flags(name), *lora)
    opened = open_model(tmp_path / "llava-lora", "assets/base-llama")
    torch.testing.assert_close(logits(opened), logits(trained.model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_four_bits_bfloat16_crops_and_text_only_rows(name: str, tmp_path: Path, llava_vectors: Path) -> None:
    """On the playground's bases, whose widths bitsandbytes takes: 8x8 patches, 4 heads."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    tokens = 16 if name == "pixel_shuffle" else 17
    bases = ["--model_name_or_path", str(BASES / "tiny-llama"), "--vision_tower", str(BASES / "tiny-clip")]
    run_training(tmp_path, *STAGE2, *bases, *flags(name, tokens), "--bf16", "True", "--gradient_checkpointing", "True")
    full, quantised = open_model(tmp_path), open_model(tmp_path, load_4bit=True)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(logits(full, images).flatten(), logits(quantised, images).flatten(), dim=0) > 0.9

    with torch.no_grad():
        crops = full(torch.tensor([[1, -200, 5]]), images=[images]).logits
        assert crops.shape[1] == 2 + 2 * full.num_visual_tokens, "crop after crop"
        rows = torch.tensor([[1, 5, -200, 6], [1, 7, 8, 9]])
        both = full(rows, images=images).logits
        torch.testing.assert_close(both[1, :4], full(rows[1:]).logits[0], rtol=0, atol=1e-4)


def test_compiled_encoding_equals_plain(tmp_path: Path, llava_vectors: Path) -> None:
    """Tower, selection and connector in one compiled function."""
    run_training(tmp_path, *STAGE2, *flags("acformer"))
    model = open_model(tmp_path)
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        compiled = torch.compile(model.encode_images, backend="aot_eager")(images)
        torch.testing.assert_close(compiled, model.encode_images(images), rtol=0, atol=1e-5)
    torch._dynamo.reset()
