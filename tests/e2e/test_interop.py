"""Old and new in one deployment: every pair of controller, worker and web server of which one is upstream's.

The old side is bare-bones code that speaks the recorded wire and knows nothing of ours.
"""

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, ClassVar

import pytest
import requests

from llava.serve.control.routes import create_app as create_controller_app
from llava.serve.controller import Controller
from llava.serve.model_worker import ModelWorker
from llava.serve.page.client import ModelClient
from tests.conftest import VECTORS
from tests.support.serve_doubles import Server, old_worker, send_json
from tests.support.serving import free_port, open_model_worker, serving, serving_model, wait_until

pytestmark = pytest.mark.e2e

LLAVA = VECTORS / "llava"
MODEL = "llava-v1-tiny-mlp2x"
TRANSCRIPT = {e["name"]: e for e in json.loads((LLAVA / "serve/transcript.json").read_text())}
RECORDED = TRANSCRIPT["controller_image"]
FILE = base64.b64encode((LLAVA / "assets/images/img0.png").read_bytes()).decode()
REQUEST = RECORDED["request"] | {"images": [FILE]}


def new_worker(controller: str, address: str, no_register: bool = False) -> ModelWorker:
    return open_model_worker(MODEL, controller, address, no_register)


class OldController(Server):
    """Registers whoever comes, answers always 200, and forgets nobody."""

    routes: ClassVar[dict[str, str]] = {
        "/register_worker": "register", "/receive_heart_beat": "beat", "/get_worker_address": "address",
        "/list_models": "models", "/refresh_all_workers": "refresh",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.workers: dict[str, list[str]] = {}

    def register(self, handler: Any, question: dict[str, Any]) -> None:
        self.workers[question["worker_name"]] = question["worker_status"]["model_names"]
        send_json(handler, None)

    def beat(self, handler: Any, question: dict[str, Any]) -> None:
        send_json(handler, {"exist": question["worker_name"] in self.workers})

    def address(self, handler: Any, question: dict[str, Any]) -> None:
        found = [name for name, models in self.workers.items() if question["model"] in models]
        send_json(handler, {"address": found[0] if found else ""})

    def models(self, handler: Any, question: dict[str, Any]) -> None:
        send_json(handler, {"models": sorted({model for models in self.workers.values() for model in models})})

    def refresh(self, handler: Any, question: dict[str, Any]) -> None:
        send_json(handler, None)


@pytest.fixture
def old_controller() -> Iterator[OldController]:
    controller = OldController()
    yield controller
    controller.close()


def old_web_server(controller: str, request: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Models, and the growing replies, as upstream's web server gets them."""
    assert requests.post(f"{controller}/refresh_all_workers", timeout=10).status_code == 200
    models = requests.post(f"{controller}/list_models", timeout=10).json()["models"]
    answer = requests.post(f"{controller}/get_worker_address", json={"model": request["model"]}, timeout=10)
    response = requests.post(
        f"{answer.json()['address']}/worker_generate_stream",
        headers={"User-Agent": "LLaVA Client"}, json=request, stream=True, timeout=10,
    )  # fmt: skip
    replies = []
    for piece in response.iter_lines(decode_unicode=False, delimiter=b"\0"):
        if piece:
            frame = json.loads(piece.decode())
            assert frame["error_code"] == 0
            replies.append(frame["text"][len(request["prompt"]) :].strip())
    return models, replies


def recorded_replies() -> list[str]:
    return [frame["text"][len(REQUEST["prompt"]) :].strip() for frame in RECORDED["frames"]]


async def new_web_server(controller: str, request: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The same by the demo's client."""
    client = ModelClient(controller)
    models = await client.list_models()
    address = await client.worker_address(request["model"])
    async with aclosing(client.stream(address, request)) as frames:
        return models, [frame["text"][len(request["prompt"]) :].strip() async for frame in frames]


def test_old_web_server_with_new_controller_and_worker() -> None:
    with (
        serving(create_controller_app(Controller("shortest_queue"))) as url,
        serving_model(new_worker(url, "", True)) as worker,
    ):
        body = {"worker_name": worker, "check_heart_beat": False, "worker_status": None}
        assert requests.post(f"{url}/register_worker", json=body, timeout=10).json() is None
        assert old_web_server(url, REQUEST) == ([MODEL], recorded_replies())


def test_new_worker_and_web_server_with_old_controller(old_controller: OldController) -> None:
    port = free_port()
    worker = new_worker(old_controller.url, f"http://127.0.0.1:{port}")
    worker.heart_beat.interval = worker.heart_beat.retry = 0.05
    with serving_model(worker, port):
        wait_until(lambda: old_controller.workers)
        assert asyncio.run(new_web_server(old_controller.url, REQUEST)) == ([MODEL], recorded_replies())
        assert old_web_server(old_controller.url, REQUEST) == ([MODEL], recorded_replies())
        old_controller.workers.clear()  # it was restarted
        wait_until(lambda: old_controller.workers)
    sent = old_controller.asked("/register_worker")[0]
    assert set(sent) == {"worker_name", "check_heart_beat", "worker_status"}
    assert sent["worker_status"] == {"model_names": [MODEL], "speed": 1, "queue_length": 0}
    assert set(old_controller.asked("/receive_heart_beat")[0]) == {"worker_name", "queue_length"}


def test_old_worker_with_new_controller_and_web_server() -> None:
    with serving(create_controller_app(Controller("shortest_queue"))) as url, old_worker(["llava-old"]) as worker:
        worker.frames = RECORDED["frames"]
        body = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": None}
        assert requests.post(f"{url}/register_worker", json=body, timeout=10).json() is None
        request = REQUEST | {"model": "llava-old"}
        assert asyncio.run(new_web_server(url, request)) == (["llava-old"], recorded_replies())
