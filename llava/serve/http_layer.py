"""What servers refuse before anything parses it: requests that are too large or too slow, and those of web pages.

Needs the `serve` extra; imported by the servers only.
"""

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Eight pictures of 8 MB as base64 and some text.
MAX_BODY_BYTES = 96 * 2**20
BODY_TIMEOUT = 60.0


class BodyLimit:
    """ASGI middleware: reads the whole body first; too large is 413, too slow 408, and the application sees neither.

    Args:
        app: the application behind it.
        max_bytes: largest body.
        timeout: seconds for the whole body, so that nobody holds connections by sending drop by drop.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, timeout: float = BODY_TIMEOUT) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _announced_length(scope) > self.max_bytes:
            await self._too_large(scope, receive, send)
            return
        body = bytearray()
        with anyio.move_on_after(self.timeout) as limit:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return  # gone before the body was complete
                body += message.get("body", b"")
                if len(body) > self.max_bytes:
                    await self._too_large(scope, receive, send)
                    return
                if not message.get("more_body", False):
                    break
        if limit.cancelled_caught:
            await _refuse(408, f"the request took longer than {self.timeout:g} seconds to arrive")(scope, receive, send)
            return
        await self.app(scope, replay(bytes(body), receive), send)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = f"the request is larger than {self.max_bytes} bytes; send fewer or smaller pictures"
        await _refuse(413, text)(scope, receive, send)


class NoPages:
    """ASGI middleware: no web page may make its visitor's browser ask this server.

    A page can post to servers on its visitor's own machine, and under a name of its own that leads there it counts as
    one of theirs (DNS rebinding). A browser says in `Origin` that a page asks; programs send no such header. OpenAI's
    API is for pages, too, but only in JSON: for that a browser asks first whether pages of others may, and is told no.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not _is_welcome(scope):
            await _refuse(403, "web pages may not ask this server; use a program")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_welcome(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    if "origin" not in headers:
        return True
    return scope["path"].startswith("/v1/") and headers.get("content-type", "").startswith("application/json")


def _announced_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _refuse(status: int, message: str) -> JSONResponse:
    # What is left of the body is not read: the connection cannot be used again.
    return JSONResponse({"message": message}, status_code=status, headers={"connection": "close"})


def replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then whatever comes (the end of the connection)."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again
