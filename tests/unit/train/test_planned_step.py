"""Planned training steps: padded, packed and chunked ones equal the public way in, loss and every gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import modeling_flash_attention_utils

from llava.constants import IGNORE_INDEX
from llava.image_processing import to_pixels
from llava.model.anyres import CropLayout
from llava.model.planned_attention import PLANNED_FLASH, PLANNED_SDPA
from llava.train.planning import BatchLayout, PlanningCollator
from tests.support.connectors import SMALL as SMALL_CONNECTOR
from tests.support.connectors import TOKENS
from tests.support.vlora_models import build, pad, random_images

pytestmark = pytest.mark.usefixtures("llava_vectors")

CONNECTORS = [*TOKENS, "mlp2x_gelu", "vlora", "acformer_vlora"]
ROWS = [[1, 300, -200, 13, 301, 302], [1, 305, 306], [1, -200, 310, 311, 312, 313, 314, 315]]
LABELS = [[-100, -100, -100, -100, 301, 302], [-100, 305, 306], [-100, -100, 310, 311, -100, 313, 314, -100]]
SETTINGS = {"vlora_rank": 8}


def model_of(name: str, **options: Any) -> Any:
    tokens = {"mm_num_visual_tokens": TOKENS.get(name, (9, 9))[0]} | SMALL_CONNECTOR | SETTINGS
    model = build(projector=name, **tokens, **options)
    model.set_attn_implementation(PLANNED_SDPA)
    return model


def layout_of(model: Any, **options: Any) -> BatchLayout:
    return BatchLayout(model.space, model.num_visual_tokens, 128, **options)


def samples(rows: list[list[int]] = ROWS, labels: list[list[int]] = LABELS) -> list[dict[str, torch.Tensor]]:
    images = random_images(len(rows))
    return [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(learned), "image": image}
        for ids, learned, image in zip(rows, labels, images, strict=True)
    ]


def public_batch() -> dict[str, torch.Tensor]:
    ids, mask = pad(ROWS)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, learned in enumerate(LABELS):
        labels[row, : len(learned)] = torch.tensor(learned)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "images": random_images(len(ROWS))}


def step(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(one: tuple, other: tuple) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.allclose(other[1][name], gradient, rtol=1e-4, atol=2e-6), name


@pytest.mark.parametrize("name", CONNECTORS)
def test_planned_equals_public(name: str) -> None:
    model = model_of(name)
    expected = step(model, public_batch())
    for options in ({}, {"chunked_loss": True}, {"packed": True}, {"packed": True, "chunked_loss": True}):
        batch = PlanningCollator(layout_of(model, **options))(samples())
        assert batch["plan"].token_ids.shape[0] == (1 if "packed" in options else 3)
        assert_same_step(expected, step(model, batch))


class FlashInterface:
    """FlashAttention's two functions with their real parameters, computed with torch; records the varlen calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def flash_attn_func(
        self, q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
        window_size: tuple = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None, deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert causal and q.shape[1] == k.shape[1]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    def flash_attn_varlen_func(
        self, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
        dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
        window_size: tuple = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None, deterministic: bool = False,
        return_attn_probs: bool = False, block_table: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append({"borders": cu_seqlens_q, "longest": max_seqlen_q})
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert isinstance(max_seqlen_q, int) and max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
        spans = zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)
        parts = [
            self.flash_attn_func(*(x[None, a:b] for x in (q, k, v)), softmax_scale=softmax_scale, causal=causal)[0]
            for a, b in spans
        ]
        return torch.cat(parts)


@pytest.mark.parametrize("mistral", [False, True])
def test_flash_attention_gets_the_borders(mistral: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = FlashInterface()
    functions = (flash.flash_attn_func, flash.flash_attn_varlen_func, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    model = model_of("acformer", mistral=mistral).double()  # FlashAttention has float32 cast to half precision
    expected = step(model, public_batch())
    model.set_attn_implementation(PLANNED_FLASH)
    for packed in (False, True):
        batch = PlanningCollator(layout_of(model, packed=packed, chunked_loss=packed))(samples())
        assert_same_step(expected, step(model, batch))
    assert len(flash.calls) == model.config.num_hidden_layers
    assert flash.calls[0]["borders"].tolist() == [0, 14, 17, 33] and flash.calls[0]["longest"] == 16


def test_a_sliding_window_is_kept() -> None:
    """A sequence that is longer than Mistral's window needs a mask; it equals transformers' own."""
    model = model_of("acformer", mistral=True)
    model.config.sliding_window = 4
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 4
    expected = step(model, public_batch())
    for packed in (False, True):
        batch = PlanningCollator(layout_of(model, packed=packed))(samples())
        assert_same_step(expected, step(model, batch))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_attention_takes_rows_only(implementation: str) -> None:
    model = model_of("vlora")
    expected = step(model, public_batch())
    model.set_attn_implementation(implementation)
    assert_same_step(expected, step(model, PlanningCollator(layout_of(model))(samples())))
    with pytest.raises(ValueError, match="packed batch needs attn_implementation planned_sdpa or planned_flash"):
        step(model, PlanningCollator(layout_of(model, packed=True))(samples()))


def test_pixels_are_normalised_on_the_device() -> None:
    """uint8 pixels give what the image processor's floats give."""
    tower = model_of("acformer").get_vision_tower()
    image = Image.effect_noise((70, 60), 80).convert("RGB")
    floats = to_pixels(image, tower.image_processor)
    pixels = to_pixels(image, tower.image_processor, as_uint8=True)
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(tower.normalize(pixels[None])[0], floats, rtol=0, atol=1e-6)


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_crops(merge: str) -> None:
    """Anyres: sizes go through the collator, and the host counts as many tokens as merging makes."""
    model = model_of("mlp2x_gelu")
    config = model.config
    config.mm_patch_merge_type, config.image_aspect_ratio = merge, "anyres"
    config.image_grid_pinpoints = [[56, 112], [112, 112], [112, 56]]
    if merge == "spatial_unpad":
        model.model.image_newline = torch.nn.Parameter(torch.randn(config.hidden_size))
    sizes = [(100, 90), (100, 90), (50, 130)]
    crops = [torch.randn(5, 3, 56, 56), torch.randn(5, 3, 56, 56), torch.randn(3, 3, 56, 56)]
    public = public_batch() | {"images": crops, "image_sizes": sizes}
    expected = step(model, public)
    items = [
        item | {"image": image, "image_size": size} for item, image, size in zip(samples(), crops, sizes, strict=True)
    ]
    layout = {"crops": CropLayout.of_config(config, model.get_vision_tower())}
    for packed in (False, True):
        assert_same_step(expected, step(model, PlanningCollator(layout_of(model, packed=packed, **layout))(items)))


def test_text_only_batches_train_everything_with_weight_zero() -> None:
    """Processes wait for the gradients of all parameters of one another."""
    model = model_of("mlp2x_gelu")
    model.model.image_newline = torch.nn.Parameter(torch.randn(model.config.hidden_size))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    _, gradients = step(model, PlanningCollator(layout_of(model, packed=True))(samples()[1:2]))
    assert gradients.keys() == trained
    assert all(not gradients[name].any() for name in trained if "mm_projector" in name or "newline" in name)
