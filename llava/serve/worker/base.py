"""What all workers share: status, slots, heart beat, the gate that turns errors into frames, endpoints, flags.

A worker is a subclass of `BaseWorker` with a `stream` of its own (contract: serve.md 2 and 3).
"""

import argparse
import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from llava.image_utils import ImageError
from llava.program import RequestError
from llava.serve import wire
from llava.serve.access import add_secret_argument
from llava.serve.http_server import require_serving
from llava.serve.worker.heart_beat import HeartBeat
from llava.serve.worker.slots import Slots

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

logger = logging.getLogger(__name__)

MAX_WAITING = 64


class BaseWorker:
    """A worker without a model.

    Args:
        controller_addr: base URL of the controller.
        worker_addr: base URL under which this worker registers.
        worker_id: a few characters that tell workers apart in logs.
        no_register: never contact a controller (S-5).
        model_names: models it serves; usually one.
        limit_concurrency: requests that run at once.
        secret: shared with the controller, None without one.
        check_heart_beat: whether the controller shall forget this worker when its beats end.
        max_waiting: requests that may wait for a slot; further ones are told that the server is busy.
    """

    speed = 1

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_names: list[str],
        limit_concurrency: int,
        secret: str | None = None,
        check_heart_beat: bool = True,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.controller_addr = controller_addr
        self.worker_addr = worker_addr
        self.worker_id = worker_id
        self.no_register = no_register
        self.model_names = list(model_names)
        self.slots = Slots(limit_concurrency, max_waiting)
        self.heart_beat = HeartBeat(controller_addr, worker_addr, self.get_status, secret, check_heart_beat)

    def get_status(self) -> dict[str, Any]:
        return {"model_names": self.model_names, "speed": self.speed, "queue_length": self.get_queue_length()}

    def get_queue_length(self) -> int:
        """Requests that run and requests that wait."""
        return self.slots.used + self.slots.waiting

    @property
    def is_healthy(self) -> bool:
        """What `/health` says."""
        return True

    def register_to_controller(self) -> None:
        """Register once; failures are logged and repaired by the next heart beat. Nothing with `no_register`."""
        if not self.no_register:
            self.heart_beat.register()

    def send_heart_beat(self) -> None:
        """Send one heart beat; failures are logged. Nothing with `no_register`."""
        if not self.no_register:
            self.heart_beat.beat()

    def start(self) -> None:
        """Called when the server starts: registration and heart beats begin, in their own thread."""
        if not self.no_register:
            self.heart_beat.start()

    def stop(self) -> None:
        """Called when the server ends."""
        self.heart_beat.stop()

    def stream(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The frames of one request (an asynchronous generator); it is cancelled when the client goes away.

        Raises:
            RequestError: the request cannot be done; its message goes to the client.
        """
        raise NotImplementedError

    async def stream_gate(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """`stream` in a slot of its own; every exception becomes one frame with error 1."""
        try:
            async with self.slots.one():
                self._report()
                async with aclosing(self.stream(params)) as frames:
                    async for frame in frames:
                        yield frame
        except (RequestError, ImageError) as error:
            logger.info("A request cannot be answered: %s", error)
            yield wire.error_frame(wire.WORKER_FAILED, str(error), wire.wants_details(params))
        except Exception:
            logger.exception("A request failed.")
            yield wire.error_frame(wire.WORKER_FAILED)
        finally:
            self._report()

    def generate_stream(self, params: dict[str, Any]) -> Iterator[bytes]:
        """`stream` for code that is not asynchronous."""
        return iterate(self.stream(params))

    def generate_stream_gate(self, params: dict[str, Any]) -> Iterator[bytes]:
        """`stream_gate` for code that is not asynchronous."""
        return iterate(self.stream_gate(params))

    def _report(self) -> None:
        if not self.no_register:
            self.heart_beat.nudge()


def iterate(pieces: AsyncGenerator[bytes, None]) -> Iterator[bytes]:
    """An asynchronous generator as an iterator, on an event loop of its own; not for use inside a running loop."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(pieces))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(pieces.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def create_worker_app(
    worker: BaseWorker, *, max_body_bytes: int | None = None, extra_routers: "Sequence[APIRouter]" = ()
) -> "FastAPI":
    """The web application of a worker; starting it calls `worker.start`, ending it `worker.stop`.

    Args:
        max_body_bytes: larger requests are answered with 413 before they are parsed.
        extra_routers: further endpoints of this kind of worker.

    Raises:
        ImportError: a package of the `serve` extra is missing.
    """
    require_serving()
    from llava.serve.http_layer import MAX_BODY_BYTES
    from llava.serve.worker.app import build_app

    return build_app(worker, max_body_bytes or MAX_BODY_BYTES, extra_routers)


def new_worker_id() -> str:
    return str(uuid.uuid4())[:6]


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that all workers have. No other flag may begin with `--controller` or `--worker`."""
    parser.add_argument("--host", type=str, default="localhost")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", type=str, default="http://localhost:21002", help="as others reach it")
    parser.add_argument("--controller-address", type=str, default="http://localhost:21001")
    parser.add_argument("--model-name", type=str, default=None, help="name to register; default: from the model's path")
    parser.add_argument("--limit-model-concurrency", type=int, default=5, help="requests that run at once")
    parser.add_argument("--stream-interval", type=int, default=1, help="accepted for old scripts; unused")
    parser.add_argument("--no-register", action="store_true", help="stay unknown to any controller")
    parser.add_argument("--max-waiting", type=int, default=MAX_WAITING, help="requests that may wait; then: busy")
    parser.add_argument("--max-request-mb", type=int, default=96, help="largest request body")
    add_secret_argument(parser)
