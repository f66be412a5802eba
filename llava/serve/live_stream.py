"""A streamed HTTP reply that ends the moment its reader goes away (S-7).

Needs the `serve` extra; imported by the servers only.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# A reader that takes nothing for so long holds a slot for nothing.
SEND_TIMEOUT = 60.0
CLIENT_GONE = 499  # status of an answer that nobody reads

Result = TypeVar("Result")


class LiveStream(Response):
    """Sends what an asynchronous generator yields, each piece at once.

    When the client hangs up, the generator is cancelled where it waits, and its `finally` blocks have run before this
    response ends. Starlette's own streaming response leaves them to the garbage collector.

    Args:
        pieces: the generator; it is closed in every case.
        status_code: HTTP status.
        headers: HTTP headers; there is no content type unless it is named here (contract: serve.md 3).
        on_end: awaited at the end in every case, also if the generator was never begun.
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
        sending = asyncio.ensure_future(self._send_all(send))
        listening = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = sending.done()
            sending.cancel()
            listening.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)
            if self.on_end is not None:
                await self.on_end()
        if finished and not sending.cancelled():
            with suppress(OSError, TimeoutError):  # the client went away, or takes nothing
                sending.result()

    async def _send_all(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in self.pieces:
                with anyio.fail_after(SEND_TIMEOUT):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self.pieces.aclose()


async def unless_gone(request: Request, work: Coroutine[None, None, Result]) -> Result | None:
    """The result of `work`; it is cancelled, and None returned, when the client hangs up first.

    The body of the request must have been read.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
