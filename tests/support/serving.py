"""Servers for tests: applications in threads, programs in processes, and workers."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from llava.images import ImageError
from llava.program import RequestError
from llava.serve import wire
from llava.serve.http_layer import listen
from llava.serve.model_worker import ModelWorker
from llava.serve.worker.base import MAX_WAITING, BaseWorker
from llava.serve.worker.options import ServingOptions
from llava.serve.worker.slots import Slots
from tests.conftest import REPOSITORY, VECTORS

NOWHERE = "http://localhost:9"


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until a condition is true and return its result; failed connections count as false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = condition()
        except OSError:
            result = None
        if result:
            return result
        assert time.monotonic() < deadline, f"{condition} did not come true within {seconds} s"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class QuickServer(uvicorn.Server):
    """Notices its end at once, where uvicorn looks every 0.1 s: tests start hundreds of servers."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.005)


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """An ASGI application on the loopback, on a free port if none is given; its address."""
    sockets = listen("127.0.0.1", port)
    server = QuickServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sockets[0].close()


@contextmanager
def program(module: str, *arguments: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """`python -m module` in a folder of its own; killed at the end."""
    variables = {key: value for key, value in os.environ.items() if key != "LLAVA_SECRET"}
    variables |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    with (folder / f"{module}.out").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=folder, env=variables, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


class Counting(BaseWorker):
    """A worker that counts up, `n` times; fails or waits on request.

    Args:
        limit: requests that run at once.
        max_waiting: requests that may wait.
    """

    def __init__(self, no_register: bool = True, limit: int = 5, max_waiting: int = MAX_WAITING) -> None:
        self.slots = Slots(limit, max_waiting)
        super().__init__("http://127.0.0.1:9", "http://localhost:1", "abcdef", no_register, ["m"])
        self.running = 0
        self.ended = 0
        self.most_running = 0
        self.go_on = threading.Event()

    def get_queue_length(self) -> int:
        return len(self.slots)

    def admit(self) -> Any:
        return self.slots.one()

    async def stream(self, params: dict[str, Any]) -> AsyncIterator[bytes]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            text = params["prompt"]
            for number in range(params.get("n", 3)):
                text += f" {number}"
                yield wire.frame(text)
                await asyncio.sleep(0)
            if "fail" in params:
                raise {"request": RequestError, "image": ImageError, "bug": KeyError}[params["fail"]]("the reason")
            while params.get("wait") and not self.go_on.is_set():
                await asyncio.sleep(0.01)
        finally:
            self.running -= 1
            self.ended += 1


def open_model_worker(
    model: str = "llava-v1-tiny-mlp2x",
    controller: str = NOWHERE,
    address: str = NOWHERE,
    no_register: bool = True,
    options: ServingOptions | None = None,
) -> ModelWorker:
    """A worker with a tiny model of the recorded vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(VECTORS / "llava")  # the checkpoint names its tower by a relative path
        path = f"checkpoints/{model}"
        upstream = (controller, address, "a1b2c3", no_register, path, None, None, False, False, "cpu")
        return ModelWorker(*upstream, options=options)


@contextmanager
def serving_model(worker: ModelWorker, port: int = 0, **options: Any) -> Iterator[str]:
    """The web application of a worker with a model; its address."""
    from llava.serve.worker.model_app import create_app

    with serving(create_app(worker, worker.served, **options), port) as address:
        yield address
