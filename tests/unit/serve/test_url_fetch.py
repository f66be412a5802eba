"""Images at web addresses: fetched only from allowed hosts with public addresses, within limits."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llava.program import RequestError
from llava.serve.worker import url_fetch
from llava.serve.worker.url_fetch import UrlFetcher, is_public


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
