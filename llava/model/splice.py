"""Putting visual tokens where the image markers stand (contract package.md 8.3, "Splicing")."""

import logging
from dataclasses import dataclass

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)

Images = torch.Tensor | list[torch.Tensor]


class ImageCountError(ValueError, IndexError):
    """Markers and pictures of a batch do not match. An IndexError too, because upstream raised that."""


@dataclass(frozen=True)
class SplicedBatch:
    """Rows after splicing, padded to one length n. `embeds [B, n, d]`, the others `[B, n]`; padding is zero, label
    IGNORE_INDEX, mask False, position 0."""

    embeds: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


def count_markers(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
    """Image markers per row that are not masked out. `input_ids`, `attention_mask` `[B, n]`."""
    markers = input_ids == IMAGE_TOKEN_INDEX
    if attention_mask is not None:
        markers = markers & attention_mask.bool()
    return markers.sum(dim=1).tolist()


def assign_pictures(markers: list[int], num_pictures: int) -> list[list[int]]:
    """Which entries of the batch's flat list of pictures each row shows.

    A row without a marker also uses up one entry, without showing it (the collator supplies a dummy picture).

    Raises:
        ImageCountError: too few pictures; or too many in a batch of several rows, where it cannot be told whose they
            are. Spare pictures of a single row are ignored with a warning, as upstream does.
    """
    rows: list[list[int]] = []
    used = 0
    for row, count in enumerate(markers):
        if used + max(count, 1) > num_pictures:
            raise ImageCountError(
                f"Row {row} of the batch needs {max(count, 1)} picture(s), starting with number {used}, but only "
                f"{num_pictures} were given: one per image marker, and a dummy one for a row without a marker"
            )
        rows.append(list(range(used, used + count)))
        used += max(count, 1)
    if used < num_pictures:
        message = f"{num_pictures} pictures were given for {used} image marker(s)"
        if len(markers) > 1:
            raise ImageCountError(f"{message} in {len(markers)} rows (markers per row: {markers})")
        logger.warning("%s; the last %d are ignored.", message, num_pictures - used)
    return rows


def fill_in_dummies(
    markers: list[int], images: Images, image_sizes: list[tuple[int, int]] | None
) -> tuple[Images, list[tuple[int, int]] | None]:
    """Give rows without a marker the dummy picture that `assign_pictures` wants, if only shown pictures were given.

    The evaluation suites make batches of such rows when they generate. In training nothing is filled in: there a
    missing picture is a fault of the data that must not shift all the others.

    Args:
        markers: per row, see `count_markers`.
        images: `[N, ...]`, or a list.
        image_sizes: one pair per picture, or None.
    """
    shown = sum(markers)
    if shown == 0 or len(images) != shown or 0 not in markers:
        return images, image_sizes
    order: list[int] = []
    used = 0
    for count in markers:
        order += range(used, used + count) if count else [0]  # the dummy is not encoded; any picture will do
        used += count
    if image_sizes is not None:
        image_sizes = [image_sizes[i] for i in order]
    return images[order] if isinstance(images, torch.Tensor) else [images[i] for i in order], image_sizes


def splice_rows(
    *,
    text_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    pictures: list[list[torch.Tensor]],
    max_length: int | None,
    padding_side: str,
) -> SplicedBatch:
    """Replace each row's markers, left to right, by the visual tokens of its pictures.

    Args:
        text_embeds: `[B, n, d]`, embeddings of `input_ids` (anything at the markers).
        input_ids: `[B, n]`, IMAGE_TOKEN_INDEX at the markers.
        attention_mask: `[B, n]` or None; masked positions are dropped first.
        labels: `[B, n]` or None.
        pictures: per row, `[T, d]` for each of its markers.
        max_length: rows are cut to this many positions, visual tokens counted; None means no cut.
        padding_side: `right` or `left`.
    """
    device = input_ids.device
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels

    rows: list[torch.Tensor] = []
    row_labels: list[torch.Tensor] = []
    for i, visual in enumerate(pictures):
        ids, embeds, targets = input_ids[i][keep[i]], text_embeds[i][keep[i]], labels[i][keep[i]]
        parts, target_parts, start = [], [], 0
        positions = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist() if visual else []
        for position, tokens in zip(positions, visual, strict=True):
            parts += [embeds[start:position], tokens.to(embeds)]
            target_parts += [targets[start:position], targets.new_full((len(tokens),), IGNORE_INDEX)]
            start = position + 1
        rows.append(torch.cat([*parts, embeds[start:]])[:max_length])
        row_labels.append(torch.cat([*target_parts, targets[start:]])[:max_length])

    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = max(len(row) for row in rows)
    return SplicedBatch(
        embeds=_pad(rows, longest, padding_side, 0.0),
        labels=_pad(row_labels, longest, padding_side, IGNORE_INDEX),
        **_mask_and_positions(lengths, longest, padding_side),
    )


def _pad(rows: list[torch.Tensor], length: int, side: str, value: float) -> torch.Tensor:
    out = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), value)
    for i, row in enumerate(rows):
        if side == "left":
            out[i, length - len(row) :] = row
        else:
            out[i, : len(row)] = row
    return out


def _mask_and_positions(lengths: torch.Tensor, longest: int, side: str) -> dict[str, torch.Tensor]:
    first = (longest - lengths if side == "left" else torch.zeros_like(lengths)).unsqueeze(1)
    offset = torch.arange(longest, device=lengths.device) - first  # [B, n], negative in left padding
    mask = (offset >= 0) & (offset < lengths.unsqueeze(1))
    return {"attention_mask": mask, "position_ids": offset.masked_fill(~mask, 0)}
