"""Images from clients: limited in number, bytes, pixels, sides and formats before they are decoded."""

import base64
import binascii
from dataclasses import dataclass

from PIL import Image

from llava.images import ImageError, open_image
from llava.program import RequestError

FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the images of a request.

    Attributes:
        max_images: per request.
        max_bytes: of one file.
        max_pixels: width x height; a decoded pixel takes three bytes.
        min_side, max_side: width and height in pixels. Images may be padded to a square of max_side x max_side pixels,
            however few pixels they have.
        max_ratio: long to short side. The short side may be enlarged to the tower's, and the long side with it: 8 x
            16384 pixels would become 336 x 688128.
    """

    max_images: int = 8
    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    min_side: int = 8
    max_side: int = 8192
    max_ratio: int = 32

    def check_count(self, count: int) -> None:
        """Check the number of images.

        Raises:
            RequestError: more images than allowed.
        """
        if count > self.max_images:
            raise RequestError(f"{count} images in one request; at most {self.max_images} are allowed")

    def decode(self, data: bytes) -> Image.Image:
        """Decode a file to an RGB image.

        Raises:
            ImageError: too large, too small or too narrow, damaged, or another format than `FORMATS`.
        """
        if len(data) > self.max_bytes:
            raise ImageError(f"an image has {len(data)} bytes; at most {self.max_bytes} are allowed")
        sides = (self.min_side, self.max_side)
        image = open_image(data, max_pixels=self.max_pixels, formats=FORMATS, sides=sides)
        if max(image.size) > self.max_ratio * min(image.size):
            width, height = image.size
            raise ImageError(
                f"an image has {width} x {height} pixels; at most {self.max_ratio} times longer than wide is allowed"
            )
        return image

    def decode_base64(self, text: str | bytes) -> Image.Image:
        """Decode a base64 file to an RGB image; its size is checked first.

        Raises:
            ImageError: no base64, or see `decode`.
        """
        if len(text) > 4 * (self.max_bytes // 3 + 1):
            raise ImageError(f"an image has more than the allowed {self.max_bytes} bytes")
        try:
            return self.decode(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"image data is not valid base64 ({error})") from error
