"""What all workers share: status, registration, the gate that turns errors into frames, flags.

A worker is a subclass of `BaseWorker` with its own `stream`. Runs without torch.
"""

import argparse
import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any

from llava.images import ImageError
from llava.program import RequestError
from llava.serve import wire
from llava.serve.access import MAX_REQUEST_MB, add_secret_argument
from llava.serve.worker.heart_beat import HeartBeat

logger = logging.getLogger(__name__)

MAX_WAITING = 64


class BaseWorker:
    """A worker without a model.

    Args:
        controller_addr: base URL of the controller.
        worker_addr: base URL under which this worker registers.
        worker_id: a few characters that distinguish workers in logs.
        no_register: never contact a controller.
        model_names: models it serves; usually one.
        secret: shared with the controller; None without one.
        check_heart_beat: whether the controller removes this worker when its heart beats stop.
    """

    speed = 1

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_names: list[str],
        secret: str | None = None,
        check_heart_beat: bool = True,
    ) -> None:
        self.controller_addr = controller_addr
        self.worker_addr = worker_addr
        self.worker_id = worker_id
        self.no_register = no_register
        self.model_names = list(model_names)
        self.heart_beat = HeartBeat(controller_addr, worker_addr, self.get_status, secret, check_heart_beat)

    def get_status(self) -> dict[str, Any]:
        """What controllers ask for: model names, speed, queue length."""
        return {"model_names": self.model_names, "speed": self.speed, "queue_length": self.get_queue_length()}

    def get_queue_length(self) -> int:
        """Requests that run or wait."""
        raise NotImplementedError

    @property
    def is_healthy(self) -> bool:
        """What `/health` reports."""
        return True

    def register_to_controller(self) -> None:
        """Register once; failures are logged, and a later heart beat repairs them. Nothing with `no_register`."""
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

    def admit(self) -> AbstractAsyncContextManager[None]:
        """A place for one request, held while it is streamed. None is needed where the back end queues by itself.

        Raises:
            RequestError: on entering: too many requests are waiting.
        """
        return nullcontext()

    def stream(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The frames of one request (an asynchronous generator); it is cancelled when the client hangs up.

        Raises:
            RequestError: the request cannot be fulfilled; the message goes to the client.
        """
        raise NotImplementedError

    async def stream_gate(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """`stream` in a place of `admit`; every exception becomes one frame with error 1."""
        try:
            async with self.admit():
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
        """`stream` for synchronous code."""
        return iterate(self.stream(params))

    def generate_stream_gate(self, params: dict[str, Any]) -> Iterator[bytes]:
        """`stream_gate` for synchronous code."""
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


def new_worker_id() -> str:
    """Six random characters."""
    return str(uuid.uuid4())[:6]


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all workers. No other flag may begin with `--controller` or `--worker`, their abbreviations."""
    parser.add_argument("--host", type=str, default="localhost")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", type=str, default="http://localhost:21002", help="as others reach it")
    parser.add_argument("--controller-address", type=str, default="http://localhost:21001")
    parser.add_argument("--model-name", type=str, default=None, help="name to register; default: from the model's path")
    parser.add_argument("--limit-model-concurrency", type=int, default=5, help="requests that run at once")
    parser.add_argument("--stream-interval", type=int, default=1, help="accepted for old scripts; unused")
    parser.add_argument("--no-register", action="store_true", help="do not contact a controller")
    parser.add_argument("--max-waiting", type=int, default=MAX_WAITING, help="requests that may wait; then: busy")
    parser.add_argument("--max-request-mb", type=int, default=MAX_REQUEST_MB, help="largest request body")
    add_secret_argument(parser)
