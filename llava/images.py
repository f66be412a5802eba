"""Opening images safely, padding and cutting them. Needs Pillow only."""

import ast
import base64
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

# Width x height an image may have before its pixels are decoded; the level at which Pillow itself starts to warn.
MAX_IMAGE_PIXELS = 89_478_485

# Background of a padded image for CLIP: int(255 * mean) per channel.
CLIP_BACKGROUND = (122, 116, 104)

Size = tuple[int, int]


class ImageError(ValueError):
    """An image that cannot be used: missing, damaged, or too large."""


def open_image(
    source: str | os.PathLike | bytes,
    max_pixels: int = MAX_IMAGE_PIXELS,
    mode: str | None = "RGB",
    formats: Sequence[str] | None = None,
    sides: tuple[int, int] = (1, MAX_IMAGE_PIXELS),
) -> Image.Image:
    """Open an image, refusing it by its header before the pixels are decoded.

    Args:
        source: path of a file, or the bytes of one.
        max_pixels: largest allowed width x height.
        mode: Pillow mode to convert to; None keeps the image's own.
        formats: file formats to accept, by Pillow's names; None is all. Others are not even parsed.
        sides: smallest and largest width and height.

    Raises:
        ImageError: the file is missing, is not an image, is damaged, or has too many pixels or a side outside `sides`.
    """
    with _opened(source, max_pixels, formats) as (image, name):
        width, height = image.size
        if not (sides[0] <= min(width, height) and max(width, height) <= sides[1]):
            raise ImageError(
                f"{name} has {width} x {height} pixels; each side must have {sides[0]} to {sides[1]}. Scale it."
            )
        if width * height > max_pixels:
            raise ImageError(
                f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}; scale it down first."
            )
        return image.copy() if mode is None else image.convert(mode)


def image_size(path: str | os.PathLike) -> Size:
    """(width, height) of an image file in pixels, from its header.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    with _opened(path) as (image, _):
        return image.size


@contextmanager
def _opened(
    source: str | os.PathLike | bytes, max_pixels: int = MAX_IMAGE_PIXELS, formats: Sequence[str] | None = None
) -> Iterator[tuple[Image.Image, str]]:
    """The image, not decoded yet, and its name for messages. Whatever Pillow raises becomes an `ImageError`."""
    name = "image data" if isinstance(source, bytes) else f"image '{os.fspath(source)}'"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            yield image, name
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; check the path.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more pixels than the limit of {max_pixels}; scale it down first.") from error
    except UnidentifiedImageError as error:
        accepted = "an image format that Pillow knows" if formats is None else ", ".join(formats)
        raise ImageError(f"{name} is not in {accepted}; convert it to PNG or JPEG.") from error
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise for damaged files
        raise ImageError(f"{name} cannot be decoded ({error}); the file is damaged or not readable.") from error


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """The image whose file is base64 encoded in ``image``; its mode is kept, its size limited.

    Raises:
        ImageError: not base64, not an image, damaged, or too many pixels.
    """
    try:
        data = base64.b64decode(image)
    except (TypeError, ValueError) as error:  # TypeError: no text at all, such as an empty cell of a table
        raise ImageError(f"image data is not valid base64 ({error}).") from error
    return open_image(data, mode=None)


def expand2square(pil_img: Image.Image, background_color) -> Image.Image:
    """Centre an image on a square canvas of its own mode; a square image is returned as it is."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    canvas = Image.new(pil_img.mode, (side, side), background_color)
    canvas.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return canvas


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """The (width, height) that keeps most of the image's pixels; ties go to the least waste, then to list order."""
    width, height = original_size

    def merit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = resolution[0] * resolution[1] - effective
        return effective, -waste

    return max(possible_resolutions, key=merit)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit an image into ``target_resolution`` (width, height), keeping its aspect, centred on black."""
    width, height = image.size
    target_width, target_height = target_resolution
    if target_width / width < target_height / height:
        size = target_width, min(math.ceil(height * (target_width / width)), target_height)
    else:
        size = min(math.ceil(width * (target_height / height)), target_width), target_height
    canvas = Image.new("RGB", (target_width, target_height), (0, 0, 0))
    canvas.paste(image.resize(size), ((target_width - size[0]) // 2, (target_height - size[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut an image into squares of ``patch_size`` pixels, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def parse_pinpoints(grid_pinpoints: str | Sequence[Size]) -> Sequence[Size]:
    """``image_grid_pinpoints`` is stored as a list or as its text; the text is parsed as a literal, never evaluated."""
    if not isinstance(grid_pinpoints, str):
        return grid_pinpoints
    try:
        return ast.literal_eval(grid_pinpoints)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"image_grid_pinpoints is not a list of [width, height] pairs: {grid_pinpoints!r}") from error


def get_anyres_image_grid_shape(image_size: Size, grid_pinpoints: str | Sequence[Size], patch_size: int) -> Size:
    """Number of tiles (width, height) that an image of ``image_size`` (width, height) is cut into."""
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size
