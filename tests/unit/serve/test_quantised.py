"""Serving in 4 and 8 bits, and LoRA directories: the engine over what `load_pretrained_model` opens."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.serve.engine.kv_slots import CacheGeometry
from tests.support.engines import Listener, alone, build, engine, random_image, request
from tests.support.training import run_training

CPU = {"device": "cpu", "dtype": torch.float32}
RESAMPLER = {"mm_num_visual_tokens": 9, "mm_resampler_depth": 1, "mm_resampler_heads": 2}
CONNECTORS: dict[str, dict[str, Any]] = {
    "mlp2x_gelu": {}, "acformer": RESAMPLER, "perceiver": RESAMPLER, "vlora": {}, "acformer_vlora": RESAMPLER
}  # fmt: skip


def serve_as_alone(model: Any) -> None:
    """Three requests at once are answered as one by one."""
    requests = [
        request([1, 300, -200, 301], random_image(1)),
        request([1, 303, 304, 305]),
        request([1, -200, 306] if model.space == "input" else [1, 302, -200, 306], random_image(2), tokens=6),
    ]
    expected = [alone(model, one) for one in requests]
    with engine(model) as running:
        listeners = [Listener(running, one) for one in requests]
        assert [listener.last().error for listener in listeners] == [None] * 3
    assert [listener.ids for listener in listeners] == expected


@pytest.mark.parametrize("option", ["load_4bit", "load_8bit"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_quantised_models(connector: str, option: str, tmp_path: Path, llava_vectors: Path) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    build(projector=connector, **CONNECTORS[connector]).save_pretrained(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes(Path("assets/tokenizer-llama", name).read_bytes())
    model = load_pretrained_model(str(tmp_path), None, "llava", **{option: True}, **CPU)[1]
    assert type(model.model.layers[0].self_attn.q_proj).__name__ in ("Linear4bit", "Linear8bitLt")
    assert CacheGeometry.of_model(model).dtype == torch.float32
    serve_as_alone(model)


@pytest.mark.parametrize("connector", ["acformer", "vlora"])
def test_lora_directory_unmerged(connector: str, tmp_path: Path, llava_vectors: Path) -> None:
    from tests.support.vlora_models import FLAGS

    flags = FLAGS if connector == "vlora" else ["--mm_projector_type", "acformer", "--mm_num_visual_tokens", "9",
                                                "--mm_resampler_depth", "1"]  # fmt: skip
    run_training(
        tmp_path / "llava-lora", "--version", "v1", "--data_path", "train/data.json", "--max_steps", "1",
        "--save_strategy", "no", "--lora_enable", "True", "--lora_r", "4", *flags,
    )  # fmt: skip
    model = load_pretrained_model(str(tmp_path / "llava-lora"), "assets/base-llama", "llava-lora", **CPU)[1]
    serve_as_alone(model)
