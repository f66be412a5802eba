"""Images in the inputs of a language model: visual tokens at their places, masked slots. Pure functions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_projector.perceptual_weights import BoundWeights, PerceptualWeights
from llava.model.sequence_plan import plan_rows, plan_sequence


@dataclass(frozen=True)
class LanguageInputs:
    """The inputs of a language model: token ids with image markers before images are put in, embeddings afterwards.

    Attributes:
        input_ids: `[B, n]`, or None where `inputs_embeds` replaces it.
        attention_mask, position_ids, labels: `[B, n]`, or None.
        inputs_embeds: `[B, n, d]`.
        weights: perceptual weights of the rows with an image; None if no row has one, except in training.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None
    weights: PerceptualWeights | BoundWeights | None = None

    @property
    def has_markers(self) -> bool:
        """Whether any row has an image marker."""
        return bool((self.input_ids == IMAGE_TOKEN_INDEX).any())


def count_markers(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
    """Image markers per row that are not masked out. `input_ids`, `attention_mask` `[B, n]`."""
    markers = input_ids == IMAGE_TOKEN_INDEX
    if attention_mask is not None:
        markers = markers & attention_mask.bool()
    return markers.sum(dim=1).tolist()


def mask_slots(text: LanguageInputs) -> LanguageInputs:
    """Keep each image's slot and position, but let nothing attend to it and predict nothing for it.

    Raises:
        ValueError: a slot is the first token of its row and has nothing to attend to.
    """
    slots = text.input_ids == IMAGE_TOKEN_INDEX
    real = torch.ones_like(slots) if text.attention_mask is None else text.attention_mask.bool()
    order = real.cumsum(dim=1)
    if (slots & real & (order == 1)).any():
        raise ValueError("A row starts with an image; put a token in front of it, for example BOS")
    if not slots.any():
        return text
    mask = real & ~slots
    return replace(
        text,
        input_ids=text.input_ids.masked_fill(slots, 0),
        attention_mask=mask if text.attention_mask is None else mask.to(text.attention_mask.dtype),
        position_ids=(order - 1).clamp(min=0) if text.position_ids is None else text.position_ids,
        labels=None if text.labels is None else text.labels.masked_fill(slots, IGNORE_INDEX),
    )


def splice_rows(
    *,
    embed: Callable[[torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    visual: list[list[torch.Tensor]],
    max_length: int | None,
    padding_side: str,
) -> LanguageInputs:
    """Replace each row's markers, left to right, by the visual tokens of its images.

    Args:
        embed: looks embeddings up, ids `[B, m]` -> `[B, m, d]`.
        input_ids: `[B, n]`, IMAGE_TOKEN_INDEX at the markers.
        attention_mask: `[B, n]` or None; masked positions are dropped first.
        labels: `[B, n]` or None.
        visual: per row, `[T, d]` for each of its markers.
        max_length: rows are cut to this many positions, visual tokens counted; None means no cut.
        padding_side: `right` or `left`.

    Returns:
        Rows padded to one length m: `inputs_embeds` `[B, m, d]`, the others `[B, m]`. Padding has embedding zero, label
        IGNORE_INDEX, mask False and position 0.
    """
    device = input_ids.device
    ids = input_ids.cpu()
    keep = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    targets = [None] * len(ids) if labels is None else [row[kept] for row, kept in zip(labels.cpu(), keep, strict=True)]
    sequences = [
        plan_sequence(row[kept], learned, [len(tokens) for tokens in of_row], max_length)
        for row, kept, learned, of_row in zip(ids, keep, targets, visual, strict=True)
    ]
    plan = plan_rows(sequences, padding_side).to(device)
    embeds = embed(plan.token_ids).masked_fill(~plan.mask.unsqueeze(-1), 0)
    shown = [tokens for of_row in visual for tokens in of_row]
    if shown:
        embeds = plan.insert_visual(embeds, torch.cat(shown))
    return LanguageInputs(None, plan.mask, plan.position_ids, plan.labels, embeds)
