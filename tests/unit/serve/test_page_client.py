"""The demo's client against peers that send without end, or nonsense."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("httpx", reason="pip install 'llava[serve]'")

import httpx

from llava.serve.page.client import ModelClient, ModelDetails, ServerError
from llava.serve.wire import WireError


def client_of(peer: Any) -> ModelClient:
    return ModelClient("http://controller", httpx.MockTransport(peer))


def as_json(content: Any) -> Any:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(content).encode()

    return httpx.Response(200, content=pieces())


async def endless(request: Any) -> Any:
    """A worker that answers everything with one letter."""
    if request.url.path == "/get_worker_address":
        return as_json({"address": "http://worker"})
    assert request.headers["accept-encoding"] == "identity"  # else a little could be unpacked to very much

    async def letters() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 2**20

    return httpx.Response(200, content=letters())


def test_a_worker_that_sends_without_end() -> None:
    client = client_of(endless)

    async def read() -> None:
        async for _ in client.stream("http://worker", {"prompt": "p"}):
            raise AssertionError("a frame")

    with pytest.raises(WireError, match="a frame is larger than"):
        asyncio.run(read())
    with pytest.raises(ServerError, match="is larger than"):
        asyncio.run(client.anchors("m", b"", None))
    assert asyncio.run(client.details_of("m")) == ModelDetails()


@pytest.mark.parametrize("reply", [{}, {"image": 5}, {"image": "a"}])
def test_anchors_without_an_image(reply: dict[str, Any]) -> None:
    async def peer(request: Any) -> Any:
        return as_json({"address": "http://worker"} if request.url.path == "/get_worker_address" else reply)

    with pytest.raises(ServerError, match="no image"):
        asyncio.run(client_of(peer).anchors("m", b"", None))


@pytest.mark.parametrize("models", [None, 5, "names", {}])
def test_models_that_are_no_list(models: Any) -> None:
    async def peer(_: Any) -> Any:
        return as_json({"models": models})

    assert asyncio.run(client_of(peer).list_models()) == []
