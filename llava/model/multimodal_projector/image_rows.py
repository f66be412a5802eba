"""Which images of a batch belong to which row. Pure functions."""

import logging

import torch

logger = logging.getLogger(__name__)


class ImageCountError(ValueError, IndexError):
    """Markers and images of a batch do not match. An IndexError too, because LLaVA raises that."""


def assign_images(markers: list[int], num_images: int) -> list[list[int]]:
    """Which entries of the batch's flat list of images each row shows.

    A row without a marker also uses up one entry, without showing it (the collator supplies a dummy image).

    Raises:
        ImageCountError: too few images; or too many in a batch of several rows, where it is ambiguous which row they
            belong to. Spare images of a single row are ignored with a warning, as in LLaVA.
    """
    rows: list[list[int]] = []
    used = 0
    for row, count in enumerate(markers):
        if used + max(count, 1) > num_images:
            raise ImageCountError(
                f"Row {row} of the batch needs {max(count, 1)} image(s), starting with number {used}, but only "
                f"{num_images} were given: one per image marker, and a dummy image for a row without a marker"
            )
        rows.append(list(range(used, used + count)))
        used += max(count, 1)
    if used < num_images:
        message = f"{num_images} images were given for {used} image marker(s)"
        if len(markers) > 1:
            raise ImageCountError(f"{message} in {len(markers)} rows (markers per row: {markers})")
        logger.warning("%s; the last %d are ignored.", message, num_images - used)
    return rows


def images_to_encode(images_of_rows: list[list[int]], num_images: int) -> list[int]:
    """The images that rows show; in training the first one, unused, where no row shows any.

    Every process must run the connector and the same operations in every layer, with or without images: under ZeRO-3
    with recomputation the order in which parameters are gathered depends on it.
    """
    shown = [image for row in images_of_rows for image in row]
    return shown if shown or num_images == 0 or not torch.is_grad_enabled() else [0]
