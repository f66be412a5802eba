"""Picture slots of connectors that hand over weights: a masked place in the sequence (contract vlora.md 4)."""

from dataclasses import dataclass

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.perceptual_weights import PerceptualWeights


@dataclass(frozen=True)
class BoundBatch:
    """What goes into the language model, all `[B, n]`; the caller's tensors stay as they are.

    Attributes:
        weights: of the rows with a picture; None if there are none, except in training.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    labels: torch.Tensor | None
    weights: PerceptualWeights | None = None


def mask_slots(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    labels: torch.Tensor | None,
) -> BoundBatch:
    """Slots keep their place and position, but nobody attends to them and nothing is predicted for them.

    Raises:
        ValueError: a slot is the first token of its row and has nothing to attend to.
    """
    slots = input_ids == IMAGE_TOKEN_INDEX
    real = torch.ones_like(slots) if attention_mask is None else attention_mask.bool()
    order = real.cumsum(dim=1)
    if (slots & real & (order == 1)).any():
        raise ValueError("A picture stands at the very start of a row; put a token in front of it, for example BOS")
    if not slots.any():
        return BoundBatch(input_ids, attention_mask, position_ids, labels)
    if position_ids is None:
        position_ids = (order - 1).clamp(min=0)
    mask = real & ~slots
    return BoundBatch(
        input_ids.masked_fill(slots, 0),
        mask if attention_mask is None else mask.to(attention_mask.dtype),
        position_ids,
        None if labels is None else labels.masked_fill(slots, IGNORE_INDEX),
    )
