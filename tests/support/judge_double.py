"""A judge for tests: an OpenAI-compatible server on loopback with scripted replies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any

from tests.support.serve_doubles import Server, send_json

PATH = "/v1/chat/completions"


class JudgeDouble(Server):
    """Answers every request with `reply(user message)`.

    Attributes:
        failures: status and error code for each of the next requests; None breaks the connection.
        page: content type and body of every response, as from a server of another kind; None for real replies.
        newer: refuse `max_tokens`, as newer models do, and accept only `max_completion_tokens`.
    """

    routes = MappingProxyType({PATH: "complete"})

    def __init__(self, reply: Callable[[str], str]) -> None:
        super().__init__()
        self.reply = reply
        self.failures: list[tuple[int, str] | None] = []
        self.newer = False
        self.page: tuple[str, bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def complete(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        failure: Any = self.failures.pop(0) if self.failures else ()
        if self.newer and "max_tokens" in request:
            failure = (400, "use max_completion_tokens")
        if self.page is not None:
            content_type, body = self.page
            handler.send_response(200)
            handler.send_header("Content-Type", content_type)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        elif failure is None:
            handler.close_connection = True
        elif failure:
            status, code = failure
            send_json(handler, {"error": {"message": f"failed: {code}", "code": code}}, status)
        else:
            text = self.reply(request["messages"][1]["content"])
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            send_json(
                handler, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            )


@contextmanager
def judge_double(reply: Callable[[str], str]) -> Iterator[JudgeDouble]:
    server = JudgeDouble(reply)
    try:
        yield server
    finally:
        server.close()
