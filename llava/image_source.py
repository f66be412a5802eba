"""Images by path or web address; downloads are limited in size and time."""

import os
import time

from PIL import Image

from llava.images import ImageError, open_image

MAX_DOWNLOAD_BYTES = 64 * 2**20
READ_TIMEOUT = 20.0  # seconds without a byte
TOTAL_TIMEOUT = 120.0  # seconds for the whole image
CHUNK_BYTES = 64 * 2**10


def is_url(source: str) -> bool:
    """Whether a source is a web address; a file may well be called `http.png`."""
    return source.lower().startswith(("http://", "https://"))


def load_image(image_file: str) -> Image.Image:
    """The RGB image at a path (`~` is expanded) or at an `http://` or `https://` address.

    Raises:
        ImageError: it is missing, cannot be fetched, is no image, damaged or too large; names the source.
    """
    if not is_url(image_file):
        return open_image(os.path.expanduser(image_file))
    data = download(image_file)
    try:
        return open_image(data)
    except ImageError as error:
        raise ImageError(f"'{image_file}': {error}") from error


def download(url: str, max_bytes: int = MAX_DOWNLOAD_BYTES, timeout: float = READ_TIMEOUT) -> bytes:
    """Download a web address, limited in size and time.

    Args:
        url: an `http://` or `https://` address.
        max_bytes: largest allowed body, counted after decompression.
        timeout: seconds to wait for a connection, and between two pieces of the body.

    Raises:
        ImageError: no connection, a status other than success, too slow, or too large.
    """
    import requests

    deadline = time.monotonic() + TOTAL_TIMEOUT
    body = bytearray()
    try:
        with requests.get(url, stream=True, timeout=timeout) as response:
            response.raise_for_status()
            for piece in response.iter_content(CHUNK_BYTES):
                body += piece
                if len(body) > max_bytes:
                    raise ImageError(f"'{url}' is larger than the limit of {max_bytes} bytes; use a smaller image.")
                if time.monotonic() > deadline:
                    raise ImageError(f"'{url}' took longer than {TOTAL_TIMEOUT:.0f} s; download it first.")
    except requests.exceptions.RequestException as error:
        raise ImageError(f"'{url}' cannot be fetched ({error}); check the address.") from error
    return bytes(body)
