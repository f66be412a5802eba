"""A streamed HTTP reply that ends the moment its reader goes away (S-7).

Needs the `serve` extra; imported by the servers only.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# A reader that takes nothing for so long holds a slot for nothing.
SEND_TIMEOUT = 60.0


class LiveStream(Response):
    """Sends what an asynchronous generator yields, each piece at once.

    When the client hangs up, the generator is cancelled where it waits, and its `finally` blocks have run before this
    response ends. Starlette's own streaming response leaves them to the garbage collector.

    Args:
        pieces: the generator; it is closed in every case.
        status_code: HTTP status.
        headers: HTTP headers; there is no content type unless it is named here (contract: serve.md 3).
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.pieces = pieces
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


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
