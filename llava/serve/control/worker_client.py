"""A controller's requests to its workers: asynchronous, bounded in time and size. Needs the `serve` extra."""

import json
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from llava.serve import wire
from llava.serve.control.state import parse_status
from llava.serve.http_client import client_options, read_limited

logger = logging.getLogger(__name__)

MAX_STATUS_BYTES = 2**20
# A controller may be registered as a worker of another one. Counting the hops ends circles of controllers.
HOPS_HEADER = "X-LLaVA-Hops"
MAX_HOPS = 4


@dataclass(frozen=True)
class Timeouts:
    """Seconds a controller waits for a worker.

    Attributes:
        connect: for a connection.
        status: for a status.
        stream: for the first and for every further piece of a stream; much longer than for a connection, as slow
            models are not dead ones.
        reply: for an answer that comes in one piece.
    """

    connect: float = 5.0
    status: float = 5.0
    stream: float = 120.0
    reply: float = 600.0


class WorkerClient:
    """One pool of connections to all workers; must be closed.

    Args:
        timeouts: how long workers are waited for.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.http = httpx.AsyncClient(**client_options(timeouts.stream, timeouts.connect))
        self.reply_timeout = httpx.Timeout(timeouts.reply, connect=timeouts.connect)

    async def close(self) -> None:
        await self.http.aclose()

    async def get_status(self, address: str, hops: int = 0) -> dict[str, Any] | None:
        """A worker's validated status, or None (logged) if it does not give one."""
        url, headers = f"{address.rstrip('/')}/worker_get_status", {HOPS_HEADER: str(hops + 1)}
        try:
            with anyio.fail_after(self.timeouts.status):
                async with self.http.stream("POST", url, headers=headers) as response:
                    if response.status_code != 200:
                        raise ValueError(f"status {response.status_code}")
                    return parse_status(json.loads(await read_limited(response, MAX_STATUS_BYTES)))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError) as error:
            logger.error("No status from %s: %s: %s", address, type(error).__name__, error)
            return None

    async def stream(
        self, address: str, body: bytes, hops: int = 0, with_details: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """A worker's complete frames; any failure becomes one last frame with error 3.

        Args:
            address: base URL of the worker.
            body: the request as the client sent it.
            hops: controllers that the request has passed already.
            with_details: whether the client asks for the reason of a failure.
        """
        reader = wire.FrameReader()
        headers = {"Content-Type": "application/json", HOPS_HEADER: str(hops + 1)}
        url = f"{address.rstrip('/')}/worker_generate_stream"
        has_answered = False
        try:
            async with self.http.stream("POST", url, content=body, headers=headers) as response:
                if response.status_code != 200:
                    raise wire.WireError(f"the worker answered with status {response.status_code}")
                async for piece in response.aiter_raw():
                    for frame in reader.feed_raw(piece):
                        yield frame + wire.DELIMITER
                        has_answered = True
            if reader.unfinished or not has_answered:
                raise wire.WireError("the worker ended its answer too early")
        except (httpx.HTTPError, httpx.InvalidURL, wire.WireError) as error:
            logger.error("The stream of %s failed: %s: %s", address, type(error).__name__, error)
            yield wire.error_frame(wire.WORKER_UNREACHABLE, explain(error), with_details)


def explain(error: Exception) -> str:
    """A failure as the client may see it: without the worker's address."""
    if isinstance(error, wire.WireError):
        return f"{error}; try again"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "the worker of this model cannot be reached; try again in a minute"
    if isinstance(error, httpx.TimeoutException):
        return "the worker of this model has fallen silent; try again"
    return "the worker of this model broke off; try again"


def hops_of(headers: Mapping[str, str]) -> int:
    """Controllers that a request has passed; anything but a small number counts as too many."""
    value = headers.get(HOPS_HEADER, "0")
    return int(value) if value in map(str, range(MAX_HOPS)) else MAX_HOPS
