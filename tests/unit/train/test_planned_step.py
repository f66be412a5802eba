"""Planned training steps: padded, packed and chunked ones equal the public way in, loss and every gradient."""

from typing import Any

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.model.planned_attention import PLANNED_SDPA
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
