"""Images by path or web address: what is fetched, what is refused."""

import http.server
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava import image_source
from llava.eval import run_llava
from llava.images import ImageError


def _png(size: tuple[int, int] = (5, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/missing.png":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            if self.path == "/slow.png":
                time.sleep(1)
            body = b"<html>" if self.path == "/page" else _png()
            try:
                self.wfile.write(body * (1000 if self.path == "/big.png" else 1))
            except OSError:  # the client has had enough
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Not into the test's output."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_image_from_the_web(site: str) -> None:
    image = run_llava.load_image(f"{site}/good.png")
    assert (image.size, image.mode) == ((5, 4), "RGB")


def test_refused_downloads(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"missing.png' cannot be fetched .*404"):
        run_llava.load_image(f"{site}/missing.png")
    with pytest.raises(ImageError, match=r"/page'.*not in an image format"):
        run_llava.load_image(f"{site}/page")
    with pytest.raises(ImageError, match="larger than the limit of 1000 bytes"):
        image_source.download(f"{site}/big.png", max_bytes=1000)
    with pytest.raises(ImageError, match="cannot be fetched"):
        image_source.download(f"{site}/slow.png", timeout=0.2)
    monkeypatch.setattr(image_source, "TOTAL_TIMEOUT", -1.0)
    with pytest.raises(ImageError, match="took longer"):
        image_source.download(f"{site}/good.png")
    with pytest.raises(ImageError, match="cannot be fetched"):
        image_source.download("http://127.0.0.1:9/x.png")


def test_only_web_schemes_are_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name begins with `http` is a file."""
    assert image_source.is_url("HTTPS://host/a.png")
    assert not image_source.is_url("httpfoo.png")
    assert not image_source.is_url("file:///etc/passwd")
    monkeypatch.chdir(tmp_path)
    Path("http_a.png").write_bytes(_png())
    args = SimpleNamespace(image_file="http_a.png;http_a.png", sep=";")
    assert [image.size for image in run_llava.load_images(run_llava.image_parser(args))] == [(5, 4)] * 2
