"""Servers for tests: an application in a thread of its own, and a bare-bones worker that speaks the recorded wire."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn

from llava.image_utils import ImageError
from llava.program import RequestError
from llava.serve import wire
from llava.serve.http_server import listen
from llava.serve.worker.base import BaseWorker
from tests.conftest import REPOSITORY


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for a condition to hold; what it gave. Errors of connecting count as "not yet"."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = condition()
        except OSError:
            result = None
        if result:
            return result
        assert time.monotonic() < deadline, f"{condition} did not come true within {seconds} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """An ASGI application on the loopback, on a free port if none is given; its address."""
    sockets = listen("127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
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


class FakeWorker:
    """An old worker: status and stream as recorded, from plain `http.server`; no health, no details, no OpenAI.

    Attributes:
        address: its base URL.
        requests: `(path, headers, body)` of everything it was sent.
        frames: what it streams, as JSON objects; an exception class in it breaks the connection there.
    """

    def __init__(self, models: list[str], queue_length: int = 0, speed: int = 1) -> None:
        self.status: Any = {"model_names": models, "speed": speed, "queue_length": queue_length}
        self.status_code = 200
        self.frames: list[Any] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.redirect: str | None = None
        self.paused = threading.Event()
        self.paused.set()
        self._connections: list[socket.socket] = []
        worker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                worker._connections.append(self.connection)

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                worker.requests.append((self.path, dict(self.headers), body))
                if worker.redirect is not None:
                    self.send_response(307)
                    self.send_header("Location", worker.redirect)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif self.path == "/worker_get_status":
                    self._json(worker.status_code, worker.status)
                elif self.path == "/worker_generate_stream":
                    self._stream()
                else:
                    self._json(404, {"detail": "Not Found"})

            def _json(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for item in worker.frames:
                    worker.paused.wait(20)
                    if item is ConnectionError:  # dies in the middle of a frame
                        self._chunk(b'{"text": "half')
                        self.wfile.flush()
                        self.connection.shutdown(socket.SHUT_RDWR)
                        self.close_connection = True
                        return
                    self._chunk(json.dumps(item).encode() + b"\0")
                self.wfile.write(b"0\r\n\r\n")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.paused.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:  # as when the process is killed
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Counting(BaseWorker):
    """Counts up, `n` times. Fails or waits where it is told to."""

    def __init__(self, no_register: bool = True, limit: int = 5, **options: Any) -> None:
        super().__init__("http://127.0.0.1:9", "http://localhost:1", "abcdef", no_register, ["m"], limit, **options)
        self.running = 0
        self.ended = 0
        self.most_running = 0
        self.go_on = threading.Event()

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
