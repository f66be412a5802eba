"""Images of the demo's visitors: opened within limits, and scaled down for chats and previews."""

import io

from PIL import Image, ImageOps

from llava.images import ImageError, open_image
from llava.serve.image_limits import FORMATS, ImageLimits

MAX_UPLOAD_BYTES = 20 * 2**20  # of one file
MAX_PIXELS = 50_000_000  # a large camera image
MIN_SIDE = 2  # pixels
MAX_SIDE = ImageLimits.max_side
PREVIEW_SIDE = 640
UPLOAD_SIDE = 1344  # as `Conversation.process_image`
# Chats keep their images. Twice the size that workers are sent loses nothing; a camera image would take 150 MB.
KEPT_SIDE = 2 * UPLOAD_SIDE


def open_images(paths: list[str]) -> list[Image.Image]:
    """The RGB images of uploaded files, turned upright, at most `KEPT_SIDE` wide and high.

    Raises:
        ImageError: a file is damaged, too large, too small, or no JPEG, PNG or WebP (for some formats, Pillow starts
            other programs).
    """
    return [_open(path) for path in paths]


def _open(path: str) -> Image.Image:
    try:
        image = open_image(path, max_pixels=MAX_PIXELS, mode=None, formats=FORMATS, sides=(1, MAX_SIDE))
    except ImageError as error:  # visitors must not see the server's paths
        raise ImageError(str(error).replace(f"image '{path}'", "the image")) from error
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"the image has {image.width} x {image.height} pixels; it is too small to see anything")
    upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((KEPT_SIDE, KEPT_SIDE))
    return upright


def make_preview(image: Image.Image) -> Image.Image:
    """A small copy."""
    preview = image.copy()
    preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return preview


def make_upload(image: Image.Image) -> bytes:
    """A PNG file for a worker, at most as large as a chat would send."""
    small = image.copy()
    small.thumbnail((UPLOAD_SIDE, UPLOAD_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()
