"""A controller's requests to its workers: not blocking, no redirects, no proxies, with time limits (S-3, S-4).

Needs the `serve` extra; imported by the controller only.
"""

import json
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from llava.serve import wire
from llava.serve.control.state import parse_status

logger = logging.getLogger(__name__)

MAX_STATUS_BYTES = 2**20
# A controller may be a worker of another one. Counting the controllers on the way ends a circle of them.
HOPS_HEADER = "X-LLaVA-Hops"
MAX_HOPS = 4


@dataclass(frozen=True)
class Timeouts:
    """Seconds a controller waits for a worker.

    Attributes:
        connect: for a connection.
        status: for a status.
        stream: for the first and for every further piece of a stream. A slow model is no dead one (S-3).
        reply: for an answer that comes in one piece.
    """

    connect: float = 5.0
    status: float = 5.0
    stream: float = 120.0
    reply: float = 600.0


class WorkerClient:
    """One pool of connections to all workers; `close` it at the end."""

    def __init__(self, timeouts: Timeouts, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.timeouts = timeouts
        self.http = httpx.AsyncClient(
            # A redirect could lead anywhere, a proxy from the environment would see what users say.
            follow_redirects=False,
            # Nothing is unpacked: a small packed answer may be a huge one.
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
            verify=ssl.create_default_context(),
            # A kept connection may lead to a worker that has been restarted since.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            transport=transport,
        )

    async def close(self) -> None:
        await self.http.aclose()

    async def get_status(self, address: str, hops: int = 0) -> dict[str, Any] | None:
        """A worker's status, or None (logged) if it gives no proper one."""
        url, headers = f"{address.rstrip('/')}/worker_get_status", {HOPS_HEADER: str(hops + 1)}
        try:
            with anyio.fail_after(self.timeouts.status):
                return parse_status(await self._read_json(url, headers))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError) as error:
            logger.error("No status from %s: %s: %s", address, type(error).__name__, error)
            return None

    async def _read_json(self, url: str, headers: Mapping[str, str]) -> Any:
        async with self.http.stream("POST", url, headers=headers, timeout=self.timeouts.status) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            return json.loads(await read_limited(response, MAX_STATUS_BYTES))

    def stream_timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeouts.stream, connect=self.timeouts.connect)

    def reply_timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeouts.reply, connect=self.timeouts.connect)

    async def stream(
        self, address: str, body: bytes, hops: int = 0, with_details: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """A worker's frames, each whole; whatever goes wrong is one last frame with error 3.

        Args:
            address: the worker.
            body: the request as the client sent it.
            hops: controllers that this request has passed already.
            with_details: whether the client wants to know why something failed.
        """
        reader = wire.FrameReader()
        headers = {**wire.CLIENT_HEADERS, "Content-Type": "application/json", HOPS_HEADER: str(hops + 1)}
        answered = False
        try:
            url = f"{address.rstrip('/')}/worker_generate_stream"
            async with self.http.stream(
                "POST", url, content=body, headers=headers, timeout=self.stream_timeout()
            ) as response:
                if response.status_code != 200:
                    raise wire.WireError(f"the worker answered with status {response.status_code}")
                async for piece in response.aiter_raw():
                    for frame in reader.feed_raw(piece):
                        yield frame + wire.DELIMITER
                        answered = True
            if reader.unfinished or not answered:
                raise wire.WireError("the worker ended its answer too early")
        except (httpx.HTTPError, httpx.InvalidURL, wire.WireError) as error:
            logger.error("The stream of %s failed: %s: %s", address, type(error).__name__, error)
            yield wire.error_frame(wire.WORKER_UNREACHABLE, explain(error), with_details)


def explain(error: Exception) -> str:
    """A failure as its victim may see it: without the worker's address."""
    if isinstance(error, wire.WireError):
        return f"{error}; try again"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "the worker of this model cannot be reached; try again in a minute"
    if isinstance(error, httpx.TimeoutException):
        return "the worker of this model has fallen silent; try again"
    return "the worker of this model broke off; try again"


async def read_limited(response: httpx.Response, max_bytes: int) -> bytes:
    """A whole body.

    Raises:
        WireError: it is larger than allowed.
    """
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise wire.WireError(f"the worker's answer is larger than {max_bytes} bytes")
    return bytes(body)


def hops_of(headers: Mapping[str, str]) -> int:
    """Controllers that a request has passed; a value that is no number counts as too many."""
    value = headers.get(HOPS_HEADER, "0")
    return int(value) if value in map(str, range(MAX_HOPS)) else MAX_HOPS
