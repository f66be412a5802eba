"""Streamed HTTP replies that end the moment their reader goes away. Needs the `serve` extra."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SEND_TIMEOUT = 60.0  # seconds in which a client must accept a piece; a stalled one would keep its slot
CLIENT_GONE = 499  # status of an answer that nobody reads

Result = TypeVar("Result")


class LiveStream(Response):
    """Sends what an asynchronous generator yields, each piece at once.

    When the client hangs up, the generator is cancelled where it waits, and its `finally` blocks have run before this
    response ends. Starlette's own streaming response leaves them to the garbage collector.

    Args:
        pieces: the generator; it is always closed.
        status_code: HTTP status.
        headers: HTTP headers. There is no content type unless it is given here; upstream's streams have none.
        on_end: awaited at the end in every case, even if the generator never started.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        on_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.pieces = pieces
        self.on_end = on_end
        self.status_code = status_code
        self.background = None
        self.body = b""
        self.media_type = None
        self.raw_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(OSError, TimeoutError):  # the client is gone, or accepts nothing
                await run_until_gone(self._send_all(send), receive)
        finally:
            if self.on_end is not None:
                await self.on_end()

    async def _send_all(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in self.pieces:
                with anyio.fail_after(SEND_TIMEOUT):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self.pieces.aclose()


async def run_until_gone(work: Coroutine[None, None, Result], receive: Receive) -> Result | None:
    """The result of `work`, or None if the client hangs up first; `work` is then cancelled.

    Args:
        work: what the client waits for.
        receive: of a request whose body has been read.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
