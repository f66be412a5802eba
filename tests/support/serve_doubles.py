"""Minimal controllers and workers that speak the recorded wire: `http.server` threads on the loopback, no model."""

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from llava.utils import server_error_msg

ANSWER = "The image shows a red circle beside a blue square."


@dataclass
class Behaviour:
    """What a worker does; a test may change it while the worker runs.

    Attributes:
        model: the name it registers.
        answer: what it says, word by word.
        pause: seconds between two words.
        hold: while cleared, the worker waits after the second word, until a test sets it.
        error: a frame with this code and message instead of an answer.
        breaks_after: words after which the connection breaks; None: never.
        says_nothing: the stream ends without a frame.
        details: reply of /worker_get_details; None is an old worker, which answers 404 to that.
    """

    model: str = "llava-v1.5-double"
    answer: str = ANSWER
    pause: float = 0.0
    hold: threading.Event = field(default_factory=threading.Event)
    error: tuple[int, str | None] | None = None
    breaks_after: int | None = None
    says_nothing: bool = False
    details: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.hold.set()


def elastic_details(**changes: Any) -> dict[str, Any]:
    """Details of a model with an elastic AcFormer."""
    return {
        "connector": "acformer",
        "space": "input",
        "num_visual_tokens": 33,
        "is_elastic": True,
        "budgets": [5, 9, 17, 33],
        "max_images": 8,
        "has_anchors": True,
        "conv_mode": "vicuna_v1",
        **changes,
    }


class Request(NamedTuple):
    """What a server was sent; `question` is the JSON of `body`, empty if it is none."""

    path: str
    question: Any
    headers: dict[str, str]
    body: bytes


class Server:
    """An HTTP server in threads whose POST paths are the methods named in `routes`.

    Attributes:
        url: its base URL.
        requests: everything it was sent.
        redirect: base URL to redirect every request to.
    """

    routes: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.redirect: str | None = None
        self._connections: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    question = json.loads(body)
                except ValueError:
                    question = {}
                outer.requests.append(Request(self.path, question, dict(self.headers), body))
                method = outer.routes.get(self.path)
                if outer.redirect is not None:
                    self.send_response(307)
                    self.send_header("Location", outer.redirect)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif method is None:
                    self.send_error(404)
                else:
                    getattr(outer, method)(self, question)

            def log_message(self, *args: Any) -> None:
                """Nothing: the output of the test is for the test."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def asked(self, path: str) -> list[Any]:
        """The questions to one path, in order."""
        return [request.question for request in self.requests if request.path == path]

    def close(self) -> None:
        """Stop, and break all connections, as when the process is killed."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def send_json(handler: BaseHTTPRequestHandler, reply: Any, status: int = 200) -> None:
    body = json.dumps(reply).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class ControllerDouble(Server):
    """A controller that knows the addresses it is given; dead workers stay until a test removes them."""

    routes = MappingProxyType(
        {"/refresh_all_workers": "refresh", "/list_models": "list_models", "/get_worker_address": "address"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.addresses: dict[str, str] = {}

    def refresh(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        send_json(handler, None)

    def list_models(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        send_json(handler, {"models": list(self.addresses)})

    def address(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        send_json(handler, {"address": self.addresses.get(question["model"], "")})


class WorkerDouble(Server):
    """A worker that answers `behaviour.answer`, or streams `frames`.

    Attributes:
        status, status_code: its answer to `/worker_get_status`.
        frames: JSON objects to stream instead of an answer; `ConnectionError` breaks the connection inside a frame.
        hung_up: set when a client closed a stream before its end.
    """

    routes = MappingProxyType(
        {
            "/worker_generate_stream": "stream",
            "/worker_get_status": "send_status",
            "/worker_get_details": "details",
            "/worker_visual_anchors": "anchors",
        }
    )

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        super().__init__()
        self.behaviour = behaviour or Behaviour()
        self.status: Any = {"model_names": [self.behaviour.model], "speed": 1, "queue_length": 0}
        self.status_code = 200
        self.frames: list[Any] | None = None
        self.hung_up = threading.Event()

    def close(self) -> None:
        """Release a stream that is on hold, then stop."""
        self.behaviour.hold.set()
        super().close()

    def send_status(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        send_json(handler, self.status, self.status_code)

    def details(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        if self.behaviour.details is None:
            handler.send_error(404)
        else:
            send_json(handler, self.behaviour.details)

    def anchors(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        details = self.behaviour.details
        if details is None:
            handler.send_error(404)
        elif not details["has_anchors"]:
            send_json(handler, {"message": f"{details['connector']} has no visual anchors"}, 400)
        else:
            image = Image.open(io.BytesIO(base64.b64decode(question["image"]))).convert("RGB")
            send_json(handler, {"image": circles_on(image), "caption": "16 anchors of 64 patches"})

    def stream(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for frame in self.answer(question) if self.frames is None else self.held_frames():
                if frame is ConnectionError:
                    send_chunk(handler, b'{"text": "half')
                    raise BrokenConnection
                send_chunk(handler, json.dumps(frame).encode() + b"\0")
            handler.wfile.write(b"0\r\n\r\n")
        except BrokenConnection:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        except OSError:  # the client has gone
            handler.close_connection = True
            self.hung_up.set()

    def held_frames(self) -> Iterator[Any]:
        for frame in self.frames:
            self.behaviour.hold.wait(20)
            yield frame

    def answer(self, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
        behaviour = self.behaviour
        if behaviour.error is not None:
            code, message = behaviour.error
            yield {
                "text": server_error_msg,
                "error_code": code,
                **({"message": message} if message and question.get("details") else {}),
            }
            return
        if behaviour.says_nothing:
            return
        text = question["prompt"]
        yield {"text": text, "error_code": 0}
        words = behaviour.answer.split(" ")
        pulse = threading.Event()
        for i, word in enumerate(words):
            if i == behaviour.breaks_after:
                raise BrokenConnection
            while i == 2 and not behaviour.hold.wait(0.02):
                yield {"text": text, "error_code": 0}  # a write to a closed connection is what tells of its end
            pulse.wait(behaviour.pause)
            text += (" " if i else "") + word
            yield {"text": text, "error_code": 0}
        if question.get("details") and behaviour.details is not None:
            yield {"text": text, "error_code": 0, "usage": self.usage(question, len(words))}

    def usage(self, question: dict[str, Any], completion_tokens: int) -> dict[str, Any]:
        budget = question.get("num_visual_tokens") or self.behaviour.details.get("num_visual_tokens", 0)
        return {
            "prompt_tokens": 40,
            "completion_tokens": completion_tokens,
            "visual_tokens": budget * len(question.get("images") or []),
            "time_to_first_token": 0.125,
        }


def old_worker(models: list[str], queue_length: int = 0, speed: int = 1) -> WorkerDouble:
    """A worker as upstream's, with a status and no frames yet."""
    worker = WorkerDouble()
    worker.status = {"model_names": models, "speed": speed, "queue_length": queue_length}
    worker.frames = []
    return worker


def send_chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    handler.wfile.flush()


class BrokenConnection(Exception):
    """The worker dies in the middle of a stream."""


def circles_on(image: Image.Image) -> str:
    """The image with circles on some fields of an 8 x 8 grid, as a PNG in base64."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for patch in (9, 11, 18, 20, 27, 29, 34, 36, 37, 42, 44, 45, 50, 52, 54, 61):
        x, y = patch % 8 * width / 8, patch // 8 * height / 8
        draw.ellipse((x, y, x + width / 8, y + height / 8), outline=(255, 45, 45), width=4)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def deployment(*behaviours: Behaviour) -> Iterator[tuple[ControllerDouble, list[WorkerDouble]]]:
    """A controller with one registered worker for each behaviour."""
    controller = ControllerDouble()
    workers = [WorkerDouble(behaviour) for behaviour in behaviours]
    for worker in workers:
        controller.addresses[worker.behaviour.model] = worker.url
    try:
        yield controller, workers
    finally:
        for server in (controller, *workers):
            server.close()
