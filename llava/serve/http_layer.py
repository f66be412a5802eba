"""What all servers share: the port they listen on, limits on requests, refusal of web pages, error bodies."""

import errno
import json
import socket
from contextlib import suppress
from typing import Any

from llava.extras import require_extra
from llava.program import RequestError
from llava.serve.access import MAX_REQUEST_MB

for module in ("fastapi", "uvicorn", "httpx", "prometheus_client"):
    require_extra(module, "serve")

import anyio  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from fastapi.responses import JSONResponse, Response  # noqa: E402
from starlette.datastructures import Headers  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

BODY_TIMEOUT = 60.0  # seconds for a whole request body
OPENAI_PATH = "/v1"


# Starting a server.


def run_server(app: ASGIApp, host: str, port: int) -> None:
    """Serve an ASGI application until it is interrupted. The port is taken first.

    Raises:
        RequestError: see `listen`.
    """
    sockets = listen(host, port)
    config = uvicorn.Config(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=5)
    try:
        with suppress(KeyboardInterrupt):  # raised again by uvicorn after it has shut down
            uvicorn.Server(config).run(sockets=sockets)
    finally:
        for one in sockets:
            one.close()


def check_port(host: str, port: int) -> None:
    """Check that a port is free, for programs that have much to do before they serve.

    Raises:
        RequestError: see `listen`.
    """
    for one in listen(host, port):
        one.close()


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on a port of this machine; `localhost` gets one per address family.

    Raises:
        RequestError: another program uses the port, or the host is not of this machine.
    """
    if not 0 <= port <= 65535:  # some systems wrap around instead of refusing
        raise RequestError(f"--port {port} cannot be used: ports are 0 to 65535; choose another")
    sockets: list[socket.socket] = []
    unusable: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listen_on(family, address))
            except OSError as error:
                # Many containers know the name of the IPv6 loopback without having one.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unusable = error
        if not sockets:
            raise OSError(f"no address of this machine ({unusable})")
    except OSError as error:
        for one in sockets:
            one.close()
        raise RequestError(f"--host {host} --port {port} cannot be used: {error}; choose another") from error
    return sockets


def _listen_on(family: int, address: Any) -> socket.socket:
    # asyncio sends small pieces at once (TCP_NODELAY) only if the protocol is named; otherwise each token waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


# Requests.


def protect(app: FastAPI, max_body_bytes: int) -> None:
    """Add the limits that every server has: bodies, web pages."""
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(NoPages)  # the middleware added last runs first


class BodyLimit:
    """ASGI middleware that reads the whole body first: 413 if too large, 408 if too slow.

    Args:
        app: the application behind it; it does not see what is refused.
        max_bytes: largest body.
        timeout: seconds for the whole body, so that nobody holds connections by sending drop by drop.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_REQUEST_MB * 2**20, timeout: float = BODY_TIMEOUT) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_bytes:
            await self._too_large(scope, receive, send)
            return
        body = bytearray()
        with anyio.move_on_after(self.timeout) as limit:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return  # disconnected before the body was complete
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
        text = f"the request is larger than {self.max_bytes} bytes; send fewer or smaller images"
        await _refuse(413, text)(scope, receive, send)


class NoPages:
    """ASGI middleware that refuses POST requests which a browser sends on behalf of a web page.

    A page can post to servers on its visitor's own machine, and passes for one of them under a name that resolves to
    the loopback (DNS rebinding). Browsers mark such requests with `Origin`; other programs do not send it. The OpenAI
    API may be used by pages, but only in JSON: for that, the browser first asks for permission, which it does not get
    for pages of other origins.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not _is_allowed(scope):
            await _refuse(403, "web pages may not ask this server; use a program")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_allowed(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    if "origin" not in headers:
        return True
    is_json = headers.get("content-type", "").startswith("application/json")
    return scope["path"].startswith(f"{OPENAI_PATH}/") and is_json


def _refuse(status: int, message: str) -> JSONResponse:
    # The rest of the body is not read, so the connection cannot be used again.
    return JSONResponse({"message": message}, status_code=status, headers={"connection": "close"})


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that yields a body that has been read already, then whatever follows."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a request body.

    Raises:
        RequestError: not a JSON object.
    """
    try:
        params = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("the request is not JSON") from error
    if not isinstance(params, dict):
        raise RequestError("the request is no JSON object")
    return params


# Errors.


class OpenAIError(Exception):
    """An error in the shape that OpenAI's clients read; `body` is the JSON, `response` the HTTP response."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status == 503 else {}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def handle_errors(app: FastAPI, status: int) -> None:
    """Answer `OpenAIError`, and requests that do not fit their schema.

    Args:
        status: for malformed requests outside of `/v1`.
    """

    @app.exception_handler(OpenAIError)
    async def openai_error(_: Request, error: OpenAIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        if request.url.path.startswith(OPENAI_PATH):
            return OpenAIError(400, message, param=place or None).response()
        return JSONResponse({"message": message}, status_code=status)


def model_list(names: list[str], created: int = 0) -> dict[str, Any]:
    """The answer to `GET /v1/models`."""
    entry = {"object": "model", "created": created, "owned_by": "llava"}
    return {"object": "list", "data": [{"id": name, **entry} for name in names]}
