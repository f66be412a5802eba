"""What strangers send: images, web addresses, fields of a request. Each guard has a test that fails without it."""

import asyncio
import base64
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from llava.image_processing import process_images
from llava.images import ImageError
from llava.program import RequestError
from llava.serve.engine.generation import BusyError, ContextFullError
from llava.serve.worker import url_fetch
from llava.serve.worker.image_intake import ImageLimits
from llava.serve.worker.served_model import PARSER_THREADS, ServedModel
from llava.serve.worker.url_fetch import UrlFetcher, is_public
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


# Web addresses.


def fetcher(*hosts: str, **options: Any) -> UrlFetcher:
    return UrlFetcher(hosts, 1000, **options)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://good.example/cat.png",
        "file:///etc/passwd",
        "gopher://good.example/",
        "//good.example/cat.png",
        "http://",
        "http:///cat.png",
        "http://good.example\\@evil.example/cat.png",
        "http://evil.example\\.good.example/",
        "http://user@good.example/cat.png",
        "http://user:word@good.example/cat.png",
        "http://good.example@evil.example/",
        "http://good.example:80@evil.example/",
        "http://good.example /cat.png",
        "http://good.example\t/cat.png",
        "http://good.example/cat.png\r\nX-Injected: 1",
        "http://good.example:99999/",
        "http://good.example:x/",
        "http://good.ex\u0430mple/",
        "http://[::1/",
        "http://good.example%00.evil.example/",
        "http://evil.example/#good.example",
        "http://evil.example/?good.example",
        "http://good.example.evil.example/",
        "http://xgood.example/",
        "http://good.example:8080/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
    ],
)
def test_tricks_are_refused_before_anything_is_looked_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(RequestError):
        fetcher("good.example").fetch(url)


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(RequestError, match="fetches no web addresses"):
        fetcher().fetch("https://example.com/cat.png")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "100.64.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
     "64:ff9b:1::1", "64:ff9b::7f00:1", "ff02::1"],
)  # fmt: skip
def test_private_addresses_are_refused_for_allowed_names(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_public(address)
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))
    private = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, private])
    with pytest.raises(RequestError, match="private ones are refused"):
        fetcher("good.example").fetch("http://good.example/cat.png")


def test_public_addresses() -> None:
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"]))


class Site:
    """A web site on the loopback, for a fetcher that trusts it."""

    def __init__(self, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        self.hosts: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                site.hosts.append(self.headers["Host"])
                status, headers, body = answers[self.path]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value.replace("PORT", str(site.port)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


@contextmanager
def site(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[Site]:
    one = Site(answers)
    thread = threading.Thread(target=one.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        one.server.server_close()


def test_fetching_within_limits_from_a_pinned_address(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "/cat": (200, {}, b"meow"),
        "/large": (200, {}, b"x" * 2000),
        "/missing": (404, {}, b""),
        "/there": (302, {"Location": "/cat"}, b""),
        "/away": (302, {"Location": "http://evil.example:PORT/cat"}, b""),
        "/inside": (302, {"Location": "http://127.0.0.1:PORT/cat"}, b""),
        "/file": (302, {"Location": "file:///etc/passwd"}, b""),
        "/round": (302, {"Location": "/round"}, b""),
        "/nowhere": (302, {}, b""),
    }
    with site(answers) as one:
        lookups = []
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", one.port))
        resolve = socket.getaddrinfo

        def look_up(host: str, *rest: Any, **options: Any) -> list[Any]:
            if host != "good.example":
                return resolve(host, *rest, **options)  # the connection itself, to the pinned address
            lookups.append(host)
            return [entry]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        trusting = fetcher(f"good.example:{one.port}", is_allowed_address=lambda address: True)
        base = f"http://good.example:{one.port}"
        assert trusting.fetch(f"{base}/cat") == b"meow"
        assert lookups == ["good.example"]  # once: it cannot become another address in between
        assert one.hosts == [f"good.example:{one.port}"]
        assert trusting.fetch(f"{base}/there") == b"meow"
        for path, message in [
            ("large", "more than 1000"), ("missing", "status 404"), ("away", "does not allow"),
            ("inside", "does not allow"), ("file", "plain http"), ("round", "more than 3 times"),
            ("nowhere", "nowhere"),
        ]:  # fmt: skip
            with pytest.raises(RequestError, match=message):
                trusting.fetch(f"{base}/{path}")
        assert f"127.0.0.1:{one.port}" not in one.hosts


def test_slow_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_fetch, "READ_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        trusting = fetcher(f"localhost:{port}", is_allowed_address=lambda address: address == "127.0.0.1")
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
        with pytest.raises(RequestError, match="cannot be fetched"):
            trusting.fetch(f"http://localhost:{port}/cat")


@pytest.mark.parametrize("drops", [b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 50, b"HTTP/1.1 200 OK\r\nA: " + b"x" * 50])
def test_whole_time_is_limited(drops: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes byte by byte is never silent for long."""
    monkeypatch.setattr(url_fetch, "TOTAL_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                for i in range(len(drops)):
                    connection.sendall(drops[i : i + 1])
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        port = server.getsockname()[1]
        trusting = fetcher(f"127.0.0.1:{port}", is_allowed_address=lambda address: True)
        began = time.monotonic()
        with pytest.raises(RequestError, match="took longer"):
            trusting.fetch(f"http://127.0.0.1:{port}/cat")
        assert time.monotonic() - began < 1.5


# Fields of a request on the wire.


class Served(ServedModel):
    """A served model without a model."""

    is_multimodal = True

    def tokenize(self, prompt: str) -> list[int]:
        return [len(prompt)]


ENGINE = SimpleNamespace(settings=SimpleNamespace(context_length=100), prepare=lambda image: f"prepared {image.size}")
SERVED = Served("llava", ENGINE, "llava_v1", LIMITS, fetcher())


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

    served = Served("llava", SimpleNamespace(reserve=busy), "llava_v1", LIMITS, fetcher())
    with pytest.raises(BusyError):
        asyncio.run(served.parse(lambda: pytest.fail("read")))


def test_few_requests_are_read_at_once() -> None:
    served = Served("llava", SimpleNamespace(reserve=nullcontext), "llava_v1", LIMITS, fetcher())
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
