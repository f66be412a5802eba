"""The body limit: what is too large or too slow never reaches the application."""

import asyncio
import json
from typing import Any

import pytest

from llava.serve.http_layer import BodyLimit
from llava.serve.live_stream import LiveStream


def run(messages: list[Any], headers: dict[str, str] | None = None, **options: Any) -> tuple[list[bytes], int, Any]:
    """What the application behind the limit got as bodies; status and JSON of the answer."""
    bodies: list[bytes] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Any:
        if not messages:
            return {"type": "http.disconnect"}
        message = messages.pop(0)
        if message is None:
            await asyncio.sleep(1000)
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    asyncio.run(BodyLimit(app, **options)({"type": "http", "headers": raw}, receive, send))
    return bodies, sent[0]["status"] if sent else 0, json.loads(sent[1]["body"]) if sent else None


def piece(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_small_bodies_pass() -> None:
    assert run([piece(b"ab"), piece(b"cd"), piece(b"", False)], max_bytes=4) == ([b"abcd"], 200, {})
    assert run([piece(b"", False)], max_bytes=4)[0] == [b""]


def test_announced_size() -> None:
    bodies, status, answer = run([piece(b"x", False)], {"content-length": "5"}, max_bytes=4)
    assert (bodies, status) == ([], 413)
    assert answer == {"message": "the request is larger than 4 bytes; send fewer or smaller images"}


@pytest.mark.parametrize("length", ["2", "-1", "x", ""])
def test_real_size(length: str) -> None:
    """Whatever was announced."""
    bodies, status, _ = run([piece(b"abc"), piece(b"de"), piece(b"f", False)], {"content-length": length}, max_bytes=4)
    assert (bodies, status) == ([], 413)


def test_too_slow() -> None:
    bodies, status, answer = run([piece(b"a"), None], max_bytes=4, timeout=0.05)
    assert (bodies, status) == ([], 408)
    assert "longer than 0.05 seconds" in answer["message"]


def test_gone_before_the_end() -> None:
    assert run([piece(b"a")], max_bytes=4) == ([], 0, None)


def stream(pieces: Any, send: Any, gone: asyncio.Event, **options: Any) -> Any:
    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    return LiveStream(pieces, **options)({"type": "http"}, receive, send)


def test_what_a_stream_holds_is_released_when_its_reader_leaves() -> None:
    """While it waits for the next piece, and while a piece is being sent."""
    ended: list[str] = []

    async def pieces() -> Any:
        try:
            yield b"a"
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)  # releasing may take a moment
            ended.append("released")

    async def on_end() -> None:
        ended.append("end")

    async def run(stuck: bool) -> None:
        gone = asyncio.Event()

        async def send(message: Any) -> None:
            if message.get("body") == b"a":
                gone.set()
                if stuck:
                    await asyncio.sleep(1000)

        await asyncio.wait_for(stream(pieces(), send, gone, on_end=on_end), 20)

    for stuck in (False, True):
        ended.clear()
        asyncio.run(run(stuck))
        assert ended == ["released", "end"]


def test_a_reader_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.serve.live_stream.SEND_TIMEOUT", 0.05)
    closed: list[bool] = []

    async def pieces() -> Any:
        try:
            while True:
                yield b"a"
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(1000)

    async def run() -> None:
        await asyncio.wait_for(stream(pieces(), send, asyncio.Event()), 20)

    asyncio.run(run())
    assert closed == [True]


def test_failures_of_a_stream_are_not_hidden() -> None:
    async def pieces() -> Any:
        yield b"a"
        raise KeyError("bug")

    async def send(message: Any) -> None:
        pass

    async def run() -> None:
        await stream(pieces(), send, asyncio.Event())

    with pytest.raises(KeyError, match="bug"):
        asyncio.run(run())
