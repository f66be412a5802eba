"""Pictures that visitors give to the demo: opened within limits (S-10), and made small for the chat box."""

import io

from PIL import Image, ImageOps

from llava.image_utils import ImageError, open_image
from llava.serve.worker.image_intake import FORMATS, ImageLimits

MAX_UPLOAD_BYTES = 20 * 2**20  # of one file
MAX_PIXELS = 50_000_000  # a large camera picture
MIN_SIDE = 2  # pixels; anything smaller shows nothing
MAX_SIDE = ImageLimits.max_side
PREVIEW_SIDE = 640
UPLOAD_SIDE = 1344  # as `Conversation.process_image`
# A chat keeps its pictures. Twice of what a worker is sent loses nothing; a camera's picture would take 150 MB.
KEPT_SIDE = 2 * UPLOAD_SIDE


def open_pictures(paths: list[str]) -> list[Image.Image]:
    """The RGB pictures of uploaded files, turned upright, at most `KEPT_SIDE` wide and high.

    Raises:
        ImageError: a file is no JPEG, PNG or WebP (Pillow starts other programs for some formats), damaged, too large
            or too small.
    """
    return [_open(path) for path in paths]


def _open(path: str) -> Image.Image:
    try:
        picture = open_image(path, max_pixels=MAX_PIXELS, mode=None, formats=FORMATS, sides=(1, MAX_SIDE))
    except ImageError as error:  # where the server keeps uploads is nobody's business
        raise ImageError(str(error).replace(f"image '{path}'", "the picture")) from error
    if min(picture.size) < MIN_SIDE:
        raise ImageError(f"the picture has {picture.width} x {picture.height} pixels; it is too small to see anything")
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    upright.thumbnail((KEPT_SIDE, KEPT_SIDE))
    return upright


def make_preview(picture: Image.Image) -> Image.Image:
    """A small copy."""
    preview = picture.copy()
    preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return preview


def make_upload(picture: Image.Image) -> bytes:
    """A PNG file for a worker, not larger than what a chat would send."""
    small = picture.copy()
    small.thumbnail((UPLOAD_SIDE, UPLOAD_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()
