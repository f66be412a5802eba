"""Images are limited before they are decoded, and every failure is one clear error."""

import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from llava.images import ImageError, expand2square, load_image_from_base64, open_image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces a size that its data does not have."""
    data = png(Image.new("L", (1, 1)))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_open_image_from_path_and_bytes(tmp_path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(Image.new("RGBA", (3, 2), (1, 2, 3, 4))))
    for source in (path, str(path), path.read_bytes()):
        image = open_image(source)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (1, 2, 3))
    assert open_image(path, mode=None).mode == "RGBA"


def test_base64_keeps_the_mode() -> None:
    for mode in ("L", "RGBA", "RGB"):
        assert load_image_from_base64(base64.b64encode(png(Image.new(mode, (2, 2)))).decode()).mode == mode


def test_pixel_limit_is_checked_before_decoding() -> None:
    data = bomb(20_000, 6_000)  # decoding would fail for lack of data, so the header alone must be judged
    with pytest.raises(ImageError, match="20000 x 6000 pixels, more than the limit"):
        open_image(data)
    with pytest.raises(ImageError, match="more than the limit"):
        load_image_from_base64(base64.b64encode(data))
    with pytest.raises(ImageError, match="more pixels than the limit"):  # beyond Pillow's own hard limit
        open_image(bomb(200_000, 200_000))
    with pytest.raises(ImageError, match="2 x 2 pixels"):
        open_image(png(Image.new("L", (2, 2))), max_pixels=3)


def test_other_failures(tmp_path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "no.png")
    with pytest.raises(ImageError, match="not in an image format"):
        open_image(b"hello")
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(bomb(100, 100))
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(tmp_path)
    for data in ("abc", float("nan")):  # the second: an empty cell of a table
        with pytest.raises(ImageError, match="base64"):
            load_image_from_base64(data)


def test_expand2square_returns_a_square_image_itself() -> None:
    square = Image.new("RGB", (4, 4))
    assert expand2square(square, (0, 0, 0)) is square
    odd = expand2square(Image.new("RGB", (2, 5), (9, 9, 9)), (0, 0, 0))
    assert odd.size == (5, 5)
    assert [odd.getpixel((x, 0))[0] for x in range(5)] == [0, 9, 9, 0, 0]  # the smaller margin comes first
