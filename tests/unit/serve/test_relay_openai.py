"""The controller as a router of the OpenAI API: what is forwarded, and how workers fail."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llava.serve.control.routes import create_app
from llava.serve.controller import Controller
from tests.support.serve_doubles import WorkerDouble
from tests.support.serving import free_port, serving


class OpenAIWorker:
    """The OpenAI endpoint of a worker, written plainly; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], Any]] = []
        self.left = threading.Event()
        self.break_off = False
        self.is_endless = False
        self.hang = False
        self.app = FastAPI()
        router = APIRouter()

        @router.post("/v1/chat/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            self.asked.append((dict(request.headers), body))
            if request.headers.get("authorization") == "Bearer wrong":
                return JSONResponse({"error": {"message": "bad key", "code": "invalid_api_key"}}, status_code=401)
            if self.hang:
                try:
                    while not await request.is_disconnected():
                        await asyncio.sleep(0.01)
                finally:
                    self.left.set()
            if body.get("stream"):
                return StreamingResponse(self.events(), media_type="text/event-stream")
            return JSONResponse({"object": "chat.completion"})

        self.app.include_router(router)

    async def events(self) -> Any:
        yield b'data: {"n": 1}\n\nda'
        yield b'ta: {"n": 2}\n\n'
        while self.is_endless:
            yield b"x" * 2**16
            await asyncio.sleep(0)
        if self.break_off:
            yield b"data: {half"
            raise RuntimeError("broken")
        yield b"data: [DONE]\n\n"


@pytest.fixture
def openai_worker(state: Controller) -> Iterator[OpenAIWorker]:
    worker = OpenAIWorker()
    with serving(worker.app) as address:
        state.register_worker(address, True, {"model_names": ["m"], "speed": 1, "queue_length": 0})
        yield worker


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(controller: str, request: Any = CHAT, **headers: str) -> httpx.Response:
    return httpx.post(f"{controller}/v1/chat/completions", content=json.dumps(request), headers=headers)


def test_models(controller: str, worker: WorkerDouble) -> None:
    answer = httpx.get(f"{controller}/v1/models").json()
    assert answer["object"] == "list"
    assert answer["data"] == [{"id": "m", "object": "model", "created": 0, "owned_by": "llava"}]


def test_completion(controller: str, openai_worker: OpenAIWorker) -> None:
    answer = chat(controller, Authorization="Bearer right", Cookie="private=1")
    assert answer.json() == {"object": "chat.completion"}
    headers, body = openai_worker.asked[0]
    assert body == CHAT
    assert headers["authorization"] == "Bearer right" and "cookie" not in headers


def test_errors_of_the_worker_are_passed_on(controller: str, openai_worker: OpenAIWorker) -> None:
    answer = chat(controller, Authorization="Bearer wrong")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_streamed_completion(controller: str, openai_worker: OpenAIWorker) -> None:
    answer = chat(controller, {**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'data: {"n": 1}\n\ndata: {"n": 2}\n\ndata: [DONE]\n\n'


def test_streamed_completion_breaks_off(controller: str, openai_worker: OpenAIWorker) -> None:
    openai_worker.break_off = True
    events = chat(controller, {**CHAT, "stream": True}).text.split("\n\n")
    assert events[:2] == ['data: {"n": 1}', 'data: {"n": 2}'] and events[3:] == [""]
    failure = json.loads(events[2].removeprefix("data: "))["error"]
    assert failure["code"] == "worker_unreachable" and "broke off" in failure["message"]


def test_an_event_that_never_ends(controller: str, openai_worker: OpenAIWorker) -> None:
    openai_worker.is_endless = True
    with httpx.stream("POST", f"{controller}/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert "larger than 1048576 bytes" in answer.read().decode()


def test_hanging_up_during_a_completion(state: Controller, openai_worker: OpenAIWorker) -> None:
    openai_worker.hang = True
    with serving(create_app(state)) as controller:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{controller}/v1/chat/completions", json=CHAT, timeout=0.3)
        assert openai_worker.left.wait(10)


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        ({**CHAT, "model": "x"}, 404, "model_not_found"),
        ({**CHAT, "model": "\ud800"}, 404, "model_not_found"),
        ({"messages": []}, 400, None),
        ([], 400, None),
        ({"model": None}, 400, None),
    ],
)
def test_errors_of_the_router(controller: str, worker: WorkerDouble, request_body: Any, status: int, code: Any) -> None:
    answer = chat(controller, request_body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    assert worker.requests == []


def test_an_old_worker_has_no_openai_endpoint(controller: str, worker: WorkerDouble) -> None:
    answer = chat(controller)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_supported")


def test_a_dead_worker_behind_the_router(controller: str, state: Controller) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    state.register_worker(gone, True, {"model_names": ["m"], "speed": 1, "queue_length": 0})
    answer = chat(controller)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_unreachable")
    assert gone not in answer.text
