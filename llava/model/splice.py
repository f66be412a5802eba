"""The layout of a sequence with images: where visual tokens go, and which slots are masked. Pure functions."""

from dataclasses import dataclass, replace

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_projector.perceptual_weights import BoundWeights, PerceptualWeights


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
    text_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    visual: list[list[torch.Tensor]],
    max_length: int | None,
    padding_side: str,
) -> LanguageInputs:
    """Replace each row's markers, left to right, by the visual tokens of its images.

    Args:
        text_embeds: `[B, n, d]`, embeddings of `input_ids` (anything at the markers).
        input_ids: `[B, n]`, IMAGE_TOKEN_INDEX at the markers.
        attention_mask: `[B, n]` or None; masked positions are dropped first.
        labels: `[B, n]` or None.
        visual: per row, `[T, d]` for each of its markers.
        max_length: rows are cut to this many positions, visual tokens counted; None means no cut.
        padding_side: `right` or `left`.

    Returns:
        Rows padded to one length n: `inputs_embeds` `[B, n, d]`, the others `[B, n]`. Padding has embedding zero, label
        IGNORE_INDEX, mask False and position 0.
    """
    device = input_ids.device
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels

    rows: list[torch.Tensor] = []
    row_labels: list[torch.Tensor] = []
    for i, tokens_of_images in enumerate(visual):
        ids, embeds, targets = input_ids[i][keep[i]], text_embeds[i][keep[i]], labels[i][keep[i]]
        parts, target_parts, start = [], [], 0
        positions = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist() if tokens_of_images else []
        for position, tokens in zip(positions, tokens_of_images, strict=True):
            parts += [embeds[start:position], tokens.to(embeds)]
            target_parts += [targets[start:position], targets.new_full((len(tokens),), IGNORE_INDEX)]
            start = position + 1
        rows.append(torch.cat([*parts, embeds[start:]])[:max_length])
        row_labels.append(torch.cat([*target_parts, targets[start:]])[:max_length])

    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = max(len(row) for row in rows)
    mask, positions = _mask_and_positions(lengths, longest, padding_side)
    return LanguageInputs(
        input_ids=None,
        attention_mask=mask,
        position_ids=positions,
        labels=_pad(row_labels, longest, padding_side, IGNORE_INDEX),
        inputs_embeds=_pad(rows, longest, padding_side, 0.0),
    )


def _pad(rows: list[torch.Tensor], length: int, side: str, value: float) -> torch.Tensor:
    out = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), value)
    for i, row in enumerate(rows):
        if side == "left":
            out[i, length - len(row) :] = row
        else:
            out[i, : len(row)] = row
    return out


def _mask_and_positions(lengths: torch.Tensor, longest: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    first = (longest - lengths if side == "left" else torch.zeros_like(lengths)).unsqueeze(1)
    offset = torch.arange(longest, device=lengths.device) - first  # [B, n], negative in left padding
    mask = (offset >= 0) & (offset < lengths.unsqueeze(1))
    return mask, offset.masked_fill(~mask, 0)
