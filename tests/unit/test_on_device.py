"""The same results on the CPU and on the device that LLAVA_TEST_DEVICE names, `cpu` if it names none.

`bash scripts/bench/gpu.sh tests` runs this file on a GPU.
"""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llava.model.label_loss import LanguageHead
from llava.model.multimodal_projector.perceptual_weights import WeightedSegments, segment_products
from llava.model.multimodal_projector.visual_anchors import rank_patches, select_visual_anchors
from llava.model.planned_attention import PLANNED_FLASH, PLANNED_SDPA
from llava.model.sequence_plan import LossPlan
from llava.train.attention import fastest_attention
from llava.train.planning import BatchLayout, PlanningCollator
from tests.support.connectors import SMALL, TOKENS
from tests.support.vlora_models import build, random_images

pytestmark = pytest.mark.usefixtures("llava_vectors")

DEVICE = os.environ.get("LLAVA_TEST_DEVICE", "cpu")
ON_GPU = DEVICE.startswith("cuda")
CONNECTORS = [*TOKENS, "mlp2x_gelu", "vlora", "acformer_vlora"]
ROWS = [[1, 300, -200, 13, 301, 302], [1, 305, 306], [1, -200, 310, 311, 312, 313, 314, 315]]
LAYOUTS = {"padded": {}, "packed": {"packed": True, "chunked_loss": True}}


def model_of(name: str) -> Any:
    model = build(projector=name, **{"mm_num_visual_tokens": TOKENS.get(name, (9, 9))[0], "vlora_rank": 8} | SMALL)
    model.set_attn_implementation(PLANNED_SDPA)
    return model


def batch_of(model: Any, **layout: bool) -> dict[str, Any]:
    rows = [torch.tensor(row) for row in ROWS]
    samples = [
        {"input_ids": row, "labels": row.masked_fill(row == -200, -100), "image": image}
        for row, image in zip(rows, random_images(len(rows)), strict=True)
    ]
    return PlanningCollator(BatchLayout(model.space, model.num_visual_tokens, 128, **layout))(samples)


def move(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {key: value.to(device) for key, value in batch.items()}


def step(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach().cpu(), {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}


def assert_close_step(one: tuple, other: tuple, share: float) -> None:
    """Equal losses, and every gradient within `share` of its largest value."""
    torch.testing.assert_close(one[0], other[0], rtol=share, atol=share)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        difference = (other[1][name] - gradient).abs().max()
        assert difference <= share * gradient.abs().max() + 1e-5, name


@pytest.mark.parametrize("name", CONNECTORS)
def test_planned_step_in_float32(name: str) -> None:
    """Padded on the CPU with all logits against both layouts on the device."""
    model = model_of(name)
    expected = step(model, batch_of(model))
    model = model.to(DEVICE)
    for layout in LAYOUTS.values():
        assert_close_step(expected, step(model, move(batch_of(model, **layout), DEVICE)), 1e-3)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONNECTORS)
def test_planned_step_does_not_wait_for_the_gpu(name: str, layout: str) -> None:
    model = model_of(name).to(DEVICE)
    batch = move(batch_of(model, **LAYOUTS[layout]), DEVICE)
    step(model, batch)  # what happens once, such as loading kernels, may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not ON_GPU or fastest_attention() != "flash_attention_2", reason="needs FlashAttention-2")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_flash_attention_equals_sdpa(layout: str) -> None:
    model = model_of("acformer").to(DEVICE, torch.bfloat16)
    batch = move(batch_of(model, **LAYOUTS[layout]), DEVICE)
    expected = step(model, batch)
    model.set_attn_implementation(PLANNED_FLASH)
    assert_close_step(expected, step(model, batch), 0.05)


def test_segment_products_in_bf16() -> None:
    """One grouped product, where the device has it, against one product per segment in float32 on the CPU."""
    lengths = (3, 40, 1, 20)
    generator = torch.Generator().manual_seed(0)
    x, a = torch.randn(sum(lengths), 64, generator=generator), torch.randn(4, 64, 8, generator=generator)
    expected = torch.cat([part @ own for part, own in zip(x.split(lengths), a, strict=True)])
    ends = torch.tensor(lengths).cumsum(0).int().to(DEVICE)
    leaves = [tensor.to(DEVICE, torch.bfloat16).requires_grad_() for tensor in (x, a)]
    found = segment_products(*leaves, WeightedSegments(None, lengths, ends))
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.03, atol=0.3)
    gradients = torch.autograd.grad(found.float().sum(), leaves)
    parts = zip(x.split(lengths), a, strict=True)
    sums = [(own.sum(1).expand(len(part), -1), part.sum(0)[:, None].expand_as(own)) for part, own in parts]
    torch.testing.assert_close(gradients[0].float().cpu(), torch.cat([s[0] for s in sums]), rtol=0.03, atol=0.3)
    torch.testing.assert_close(gradients[1].float().cpu(), torch.stack([s[1] for s in sums]), rtol=0.03, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_loss_equals_cross_entropy(dtype: torch.dtype) -> None:
    """torch's fused operation on a GPU that has it, the loop elsewhere; more positions than a chunk holds."""
    torch.manual_seed(0)
    head = LanguageHead(16, 128, bias=False)
    hidden, targets = torch.randn(1, 1500, 16), torch.randint(128, (1400,))
    places = torch.randperm(1500)[:1400].sort().values
    expected = F.cross_entropy(head(hidden)[0, places], targets)
    (expected_gradient,) = torch.autograd.grad(expected, head.weight)
    head = head.to(DEVICE, dtype)
    found = head(hidden.to(DEVICE, dtype), LossPlan(places.to(DEVICE), targets.to(DEVICE)))
    (gradient,) = torch.autograd.grad(found, head.weight)
    rtol, share = (1e-4, 1e-3) if dtype == torch.float32 else (0.01, 0.05)
    torch.testing.assert_close(found.cpu(), expected, rtol=rtol, atol=rtol)
    assert (gradient.float().cpu() - expected_gradient).abs().max() <= share * expected_gradient.abs().max()


def test_uint8_pixels_are_normalised() -> None:
    tower = build().get_vision_tower()
    pixels = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = tower.normalize(pixels)
    assert expected.dtype == torch.float32 and expected.min() < 0 < expected.max()
    found = tower.to(DEVICE).normalize(pixels.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_ranks_are_equal_with_ties() -> None:
    """Attention as bf16 has it: many equal values."""
    generator = torch.Generator().manual_seed(0)
    attention = torch.randn(4, 16, 576, generator=generator).softmax(-1).bfloat16().float()
    assert len(attention.unique()) < attention.numel() / 2
    on_device = attention.to(DEVICE)
    torch.testing.assert_close(rank_patches(on_device, 36).cpu(), by_sorting(attention)[..., :36])
    assert torch.equal(select_visual_anchors(on_device, 144).cpu(), select_visual_anchors(attention, 144))


def by_sorting(scores: torch.Tensor) -> torch.Tensor:
    """From the highest to the lowest; among equals the larger index first."""
    return scores.flip(-1).argsort(dim=-1, descending=True, stable=True).neg() + scores.shape[-1] - 1
