"""Images and fields of requests: what is accepted, and what is refused."""

import asyncio
import base64
import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from llava.image_processing import process_images
from llava.images import ImageError
from llava.program import RequestError
from llava.serve.engine.generation import BusyError, ContextFullError
from llava.serve.image_limits import ImageLimits
from llava.serve.worker.served_model import PARSER_THREADS, ServedModel
from llava.serve.worker.url_fetch import UrlFetcher
from llava.serve.worker.wire_request import generation_request

LIMITS = ImageLimits(max_images=2, max_bytes=5000, max_pixels=10_000, min_side=8, max_side=500)


def file_of(width: int = 20, height: int = 20, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format=kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A small file whose header announces a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_of_the_accepted_formats(kind: str, mode: str) -> None:
    assert LIMITS.decode(file_of(kind=kind, mode=mode)).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file_of(kind="GIF"), "JPEG, PNG, WEBP"),
        (file_of(kind="BMP"), "JPEG, PNG, WEBP"),
        (file_of(kind="TIFF"), "JPEG, PNG, WEBP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "JPEG, PNG, WEBP"),
        (b"", "JPEG, PNG, WEBP"),
        (b"not an image", "JPEG, PNG, WEBP"),
        (file_of(1, 1), "1 x 1 pixels; each side must have 8 to 500"),
        (file_of(400, 1), "each side must have 8"),
        (file_of(501, 9), "each side must have 8 to 500"),
        (file_of(8, 257), "8 x 257 pixels; at most 32 times"),
        (file_of(257, 8), "257 x 8 pixels; at most 32 times"),
        (file_of(200, 200), "more than the limit of 10000"),
        (png_that_claims(60_000, 60_000), "limit of 10000"),
        (png_that_claims(499, 499), "more than the limit"),
        (file_of()[:-20], "damaged"),
        (file_of() + b"\0" * 5000, "at most 5000"),
    ],
)
def test_other_images_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        LIMITS.decode(data)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_accepted_image_stays_small_on_its_way_to_the_tower(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may become gigabytes when it is padded to a square, or scaled by its short side."""
    limits, largest, new, resize = ImageLimits(), [0], Image.new, Image.Image.resize

    def watch(make: Any) -> Any:
        def made(*args: Any, **options: Any) -> Image.Image:
            image = make(*args, **options)
            largest.append(image.width * image.height)
            return image

        return made

    images = [limits.decode(file_of(*size)) for size in ((8192, 256), (8, 256), (2000, 2000))]
    monkeypatch.setattr(Image, "new", watch(new))
    monkeypatch.setattr(Image.Image, "resize", watch(resize))
    processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    process_images(images, processor, SimpleNamespace(image_aspect_ratio=mode))
    assert max(largest) <= 2**26
    for size in ((8, 16_384), (16_384, 513)):
        with pytest.raises(ImageError):
            limits.decode(file_of(*size))


def test_base64_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than the allowed 5000 bytes"):
        LIMITS.decode_base64("A" * 8000)


@pytest.mark.parametrize("text", ["????", "a", "data:image/png;base64,AAAA", "ü"])
def test_text_that_is_not_base64(text: str) -> None:
    with pytest.raises(ImageError, match="base64"):
        LIMITS.decode_base64(text)


# Fields of a request on the wire.


class Served(ServedModel):
    """A served model without a model."""

    is_multimodal = True

    def tokenize(self, prompt: str) -> list[int]:
        return [len(prompt)]


ENGINE = SimpleNamespace(settings=SimpleNamespace(context_length=100), prepare=lambda image: f"prepared {image.size}")
SERVED = Served("llava", ENGINE, "llava_v1", LIMITS, UrlFetcher((), 1000))


def read(**params: Any) -> Any:
    return generation_request({"prompt": "Hello", **params}, SERVED)


def test_fields_and_defaults() -> None:
    plain = read()
    assert (plain.max_new_tokens, plain.sampling.temperature, plain.sampling.top_p, plain.stops) == (256, 1.0, 1.0, ())
    texts = read(temperature="0", top_p="0.5", max_new_tokens="7", stop="###", seed=-1, top_k=3, num_visual_tokens=9)
    assert (texts.max_new_tokens, texts.stops, texts.num_visual_tokens) == (7, ("###",), 9)
    assert (texts.sampling.top_k, texts.sampling.seed, texts.sampling.top_p) == (3, -1, 0.5)
    assert read(max_new_tokens=100_000).max_new_tokens == 1024
    assert read(images=[]).images == read(images=None).images == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", value) for value in ("hot", float("nan"), float("inf"), -1, [], {}, True, 10**400)]
    + [("top_p", value) for value in (1.1, -0.1, "x")]
    + [("max_new_tokens", value) for value in ("x", [], 2**40, float("nan"), float("inf"))]
    + [("seed", 2**70), ("top_k", -1), ("num_visual_tokens", 0), ("stop", 5), ("stop", ["a"]), ("stop", "x" * 1000)],
)
def test_bad_fields_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        read(**{name: value})


def test_markers_and_images_must_match() -> None:
    image = base64.b64encode(file_of()).decode()
    assert read(prompt="<image>", images=[image]).images == ("prepared (20, 20)",)
    for prompt, images in (("<image>", []), ("<image>", None), ("", [image]), ("<image><image>", [image])):
        with pytest.raises(RequestError, match="Number of images does not match"):
            read(prompt=prompt, images=images)


@pytest.mark.parametrize("images", ["AAAA", [1], [None], {"a": "b"}, 5, True])
def test_images_must_be_a_list_of_texts(images: Any) -> None:
    with pytest.raises(RequestError, match="list of base64 encoded files"):
        read(images=images)


def test_too_many_images() -> None:
    with pytest.raises(RequestError, match="at most 2"):
        read(images=["AAAA"] * 3)


def test_nothing_is_read_for_a_request_that_finds_no_place() -> None:
    """A small request may hold images that take gigabytes while they are decoded."""

    @contextmanager
    def busy() -> Iterator[None]:
        raise BusyError("busy")
        yield

    served = Served("llava", SimpleNamespace(reserve=busy), "llava_v1", LIMITS, UrlFetcher((), 1000))
    with pytest.raises(BusyError):
        asyncio.run(served.parse(lambda: pytest.fail("read")))


def test_few_requests_are_read_at_once() -> None:
    served = Served("llava", SimpleNamespace(reserve=nullcontext), "llava_v1", LIMITS, UrlFetcher((), 1000))
    lock, now, most = threading.Lock(), [0], [0]

    def read() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    async def many() -> None:
        await asyncio.gather(*(served.parse(read) for _ in range(20)))

    asyncio.run(many())
    assert most[0] == PARSER_THREADS


def test_endless_prompt_is_not_tokenized() -> None:
    with pytest.raises(ContextFullError, match="12801 characters"):
        ServedModel.tokenize(SERVED, "x" * 12_801)
