"""Images as the tensors that a vision tower takes. Imports torch when it is used, so that programs start quickly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from llava.images import (
    Size,
    divide_to_patches,
    expand2square,
    parse_pinpoints,
    resize_and_pad_image,
    select_best_resolution,
)

if TYPE_CHECKING:
    import torch


def to_pixels(image: Image.Image, processor, as_uint8: bool = False) -> torch.Tensor:
    """One image through the processor, ``[3, H, W]``.

    Args:
        as_uint8: leave rescaling and normalisation to the vision tower; a quarter of the bytes travels to the device.
    """
    options = {"do_rescale": False, "do_normalize": False} if as_uint8 else {}
    return processor.preprocess(image, return_tensors="pt", **options)["pixel_values"][0]


def process_anyres_image(
    image: Image.Image, processor, grid_pinpoints: str | Sequence[Size], as_uint8: bool = False
) -> torch.Tensor:
    """Whole image and tiles as ``[1 + tiles, 3, H, W]``: first the image squashed to a square, then the tiles."""
    import torch

    image = image.convert("RGB")
    side = processor.size["shortest_edge"]
    resolution = select_best_resolution(image.size, parse_pinpoints(grid_pinpoints))
    tiles = divide_to_patches(resize_and_pad_image(image, resolution), processor.crop_size["height"])
    pieces = [image.resize((side, side)), *tiles]
    return torch.stack([to_pixels(piece, processor, as_uint8) for piece in pieces])


def process_images(images: Sequence[Image.Image], image_processor, model_cfg) -> torch.Tensor | list[torch.Tensor]:
    """Images of one request, as the model's ``config.image_aspect_ratio`` asks.

    ``pad``: padded to a square with the processor's mean colour. ``anyres``: whole image and tiles. Anything else:
    the processor alone (for CLIP: resize the short side, centre crop). Images are converted to RGB first.

    Returns:
        ``[n, 3, H, W]``, or ``[n, 1 + tiles, 3, H, W]`` for ``anyres``; a list of tensors when shapes differ.

    Raises:
        RuntimeError, IndexError: no images (the type depends on the mode, as upstream).
    """
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    one_by_one = aspect_ratio in ("pad", "anyres")
    if len(images) == 0:
        raise (RuntimeError if one_by_one else IndexError)("process_images needs at least one image.")
    images = [image.convert("RGB") for image in images]
    if not one_by_one:
        return image_processor(images, return_tensors="pt")["pixel_values"]

    import torch

    if aspect_ratio == "pad":
        tensors = [preprocess_padded(image, image_processor) for image in images]
    else:
        tensors = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
    same_shape = all(tensor.shape == tensors[0].shape for tensor in tensors)
    return torch.stack(tensors) if same_shape else tensors


def preprocess_padded(image: Image.Image, image_processor, as_uint8: bool = False) -> torch.Tensor:
    """One RGB image padded to a square with the processor's mean colour, as ``[3, H, W]``."""
    background = tuple(int(255 * mean) for mean in image_processor.image_mean)
    return to_pixels(expand2square(image, background), image_processor, as_uint8)
