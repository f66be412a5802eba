"""Pictures that strangers send: limited in number, bytes, pixels, sides and formats before they are decoded (S-10)."""

import base64
import binascii
from dataclasses import dataclass

from PIL import Image

from llava.image_utils import ImageError, open_image
from llava.program import RequestError

FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class ImageLimits:
    """What a request's pictures may be.

    Attributes:
        max_images: per request.
        max_bytes: of one file.
        max_pixels: width x height; decoded, a pixel takes three bytes.
        min_side, max_side: width and height in pixels. Pictures may be padded to a square, which has up to
            max_side x max_side pixels however few the picture has.
        max_ratio: long to short side. The short side may be enlarged to the tower's, and the long one with it: of
            8 x 16384 pixels to 336 x 688128.
    """

    max_images: int = 8
    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    min_side: int = 8
    max_side: int = 8192
    max_ratio: int = 32

    def check_count(self, count: int) -> None:
        """
        Raises:
            RequestError: more pictures than allowed.
        """
        if count > self.max_images:
            raise RequestError(f"{count} pictures in one request; at most {self.max_images} are allowed")

    def decode(self, data: bytes) -> Image.Image:
        """The RGB picture in a file's bytes.

        Raises:
            ImageError: too large, too small or too narrow, damaged, or another format than `FORMATS`.
        """
        if len(data) > self.max_bytes:
            raise ImageError(f"a picture has {len(data)} bytes; at most {self.max_bytes} are allowed")
        sides = (self.min_side, self.max_side)
        picture = open_image(data, max_pixels=self.max_pixels, formats=FORMATS, sides=sides)
        if max(picture.size) > self.max_ratio * min(picture.size):
            width, height = picture.size
            raise ImageError(
                f"a picture has {width} x {height} pixels; at most {self.max_ratio} times longer than wide is allowed"
            )
        return picture

    def decode_base64(self, text: str | bytes) -> Image.Image:
        """The RGB picture in a base64 text; its size is checked before it is decoded.

        Raises:
            ImageError: no base64, or see `decode`.
        """
        if len(text) > 4 * (self.max_bytes // 3 + 1):
            raise ImageError(f"a picture has more than {self.max_bytes} bytes, which are allowed")
        try:
            return self.decode(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"image data is not valid base64 ({error})") from error
