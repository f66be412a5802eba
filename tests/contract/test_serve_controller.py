"""The controller against recordings of the original: its logic, and every exchange that needs no model.

Deviations on purpose: one error frame where the original sends two, and a malformed body is answered with 400
and a message where the original failed with 500.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llava.chat import build_prompt
from llava.serve import register_worker, test_message, wire
from llava.serve.control.routes import create_app
from llava.serve.controller import Controller, DispatchMethod
from llava.serve.worker.app import create_worker_app
from llava.serve.worker.base import BaseWorker
from tests.conftest import VECTORS
from tests.support.serve_doubles import WorkerDouble, old_worker
from tests.support.serving import serving

SERVE = VECTORS / "llava/serve"
LOGIC = json.loads((SERVE / "controller_logic.json").read_text())
TRANSCRIPT = json.loads((SERVE / "transcript.json").read_text())
ENTRIES = {entry["name"]: entry for entry in TRANSCRIPT}
MODEL = "llava-v1-tiny-mlp2x"
EMPTY = ["list_models_empty", "address_unknown", "status_empty", "heart_beat_unknown", "generate_no_worker",
         "register_dead_worker", "list_after_dead"]  # fmt: skip
ONE_WORKER = ["list_models", "address", "controller_status", "heart_beat_known", "refresh", "list_after_refresh",
              "address_after_refresh", "controller_unknown_model"]  # fmt: skip


# The logic of the class.


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def table(controller: Controller) -> dict[str, Any]:
    return {
        name: {"models": info.model_names, "speed": info.speed, "q": info.queue_length, "hb": info.check_heart_beat}
        for name, info in controller.worker_info.items()
    }


def test_controller_logic() -> None:
    clock = Clock()
    controller = Controller("shortest_queue", clock=clock)
    registered = [
        controller.register_worker("w1", True, {"model_names": ["a", "b"], "speed": 1, "queue_length": 3}),
        controller.register_worker("w2", True, {"model_names": ["a"], "speed": 2, "queue_length": 4}),
        controller.register_worker("w3", False, {"model_names": ["b"], "speed": 1, "queue_length": 0}),
    ]
    assert registered == LOGIC["register"]
    assert [controller.get_worker_address("a") for _ in range(8)] == LOGIC["picks_a"]
    assert [controller.get_worker_address("b") for _ in range(4)] == LOGIC["picks_b"]
    assert controller.get_worker_address("none") == LOGIC["picks_none"]
    assert table(controller) == LOGIC["info_after"]
    assert sorted(controller.list_models()) == LOGIC["models"]
    beats = [controller.receive_heart_beat("w1", 9), controller.receive_heart_beat("unknown", 0)]
    assert beats == LOGIC["heart_beat"]
    assert controller.worker_info["w1"].queue_length == LOGIC["queue_after_hb"]
    clock.now += 20
    controller.receive_heart_beat("w2", 10)
    clock.now += 11  # 31 seconds after w1's last report, 11 after w2's
    controller.remove_expired()
    assert table(controller) == LOGIC["after_expiry"]


def test_names_of_dispatching() -> None:
    assert [method.name for method in DispatchMethod] == LOGIC["dispatch_names"]
    with pytest.raises(ValueError) as caught:
        DispatchMethod.from_str("round_robin")
    assert [type(caught.value).__name__, str(caught.value)] == LOGIC["bad_dispatch"]


def test_routes_of_the_original_exist() -> None:
    paths = create_app(Controller("lottery")).openapi()["paths"]
    assert set(LOGIC["routes"]) <= {path for path, methods in paths.items() if "post" in methods}


# The recorded conversation. WORKER and CONTROLLER stand for addresses.


@pytest.fixture
def controller() -> Iterator[str]:
    with serving(create_app(Controller("shortest_queue"))) as address:
        yield address


@pytest.fixture
def worker() -> Iterator[WorkerDouble]:
    with old_worker([MODEL]) as fake:
        yield fake


def replay(name: str, controller: str, worker: str = "") -> None:
    """Send a recorded request; status, headers and answer must be the recorded ones."""
    entry = json.loads(json.dumps(ENTRIES[name]).replace("http://WORKER", worker))
    options = {} if entry["request"] is None else {"json": entry["request"]}
    answer = httpx.post(controller + entry["path"], **options)
    assert answer.status_code == entry["status"], name
    # Lengths depend on the address.
    different = {"content-length"} if worker and worker in json.dumps(entry) else set()
    expected = {key: value for key, value in entry["headers"].items() if key not in different}
    got = {key: value for key, value in answer.headers.items() if key not in {"date", "server"} | different}
    assert got == expected, name
    if "frames" not in entry:
        assert answer.json() == entry["response"], name
        return
    frames = list(wire.read_frames([answer.content]))
    assert answer.content.endswith(b"\0")
    expected_frames = entry["frames"]
    if name in ("generate_no_worker", "controller_unknown_model"):
        expected_frames = expected_frames[:1]  # upstream adds one with code 3
    assert [{key: one[key] for key in ("text", "error_code")} for one in frames] == expected_frames, name


def test_empty_controller(controller: str) -> None:
    for name in EMPTY:
        replay(name, controller)


def test_controller_with_a_worker(controller: str, worker: WorkerDouble) -> None:
    registration = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": worker.status}
    assert httpx.post(f"{controller}/register_worker", json=registration).json() is None
    for name in ONE_WORKER:
        replay(name, controller, worker.url)
    worker.close()
    for name in ("refresh_with_dead_worker", "list_after_worker_death"):
        replay(name, controller, worker.url)


@pytest.mark.parametrize("name", ["controller_text", "controller_image"])
def test_relayed_stream(name: str, controller: str, worker: WorkerDouble) -> None:
    entry = ENTRIES[name]
    worker.frames = entry["frames"]
    httpx.post(f"{controller}/register_worker", json={"worker_name": worker.url, "check_heart_beat": False})
    replay(name, controller)
    request = worker.requests[-1]
    assert request.path == "/worker_generate_stream"
    assert request.question == entry["request"]
    assert request.headers["User-Agent"] == "LLaVA Client"
    if entry["body_base64"]:
        import base64

        answer = httpx.post(controller + entry["path"], json=entry["request"])
        assert answer.content == base64.b64decode(entry["body_base64"])


def test_lottery(worker: WorkerDouble) -> None:
    with serving(create_app(Controller("lottery"))) as controller:
        replay("restarted_controller_list", controller)
        httpx.post(f"{controller}/register_worker", json={"worker_name": worker.url, "check_heart_beat": True})
        replay("list_after_reregistration", controller)
        replay("lottery_address", controller, worker.url)
        replay("lottery_unknown", controller)


def test_malformed_body(controller: str) -> None:
    entry = ENTRIES["controller_bad_body"]
    answer = httpx.post(controller + entry["path"], json=entry["request"])
    assert (entry["status"], answer.status_code) == (500, 400)
    assert answer.json() == {"message": "check_heart_beat: Field required"}


def test_every_exchange_with_the_controller_is_replayed() -> None:
    replayed = {*EMPTY, *ONE_WORKER, "refresh_with_dead_worker", "list_after_worker_death", "controller_text",
                "controller_image", "restarted_controller_list", "list_after_reregistration", "lottery_address",
                "lottery_unknown", "controller_bad_body", "list_after_cli_register"}  # fmt: skip
    assert {entry["name"] for entry in TRANSCRIPT if entry.get("server") == "controller"} == replayed


def test_programs(
    controller: str, worker: WorkerDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`register_worker` and `test_message` as they were called, with the prefixes that the documents use."""
    monkeypatch.delenv("LLAVA_SECRET", raising=False)
    monkeypatch.setattr("sys.argv", ["r", "--controller", controller, "--worker", worker.url])
    register_worker.main()
    assert capsys.readouterr().out == ENTRIES["cli_register_worker"]["stdout"]
    replay("list_after_cli_register", controller)

    entry = ENTRIES["cli_test_message"]
    reply = "A long story."
    monkeypatch.setattr(
        "sys.argv", ["t", "--controller", controller, "--model-name", MODEL, "--message", entry["message"]]
    )
    prompt = build_prompt(entry["message"], "vicuna_v1")
    worker.frames = [{"text": prompt + reply[:end], "error_code": 0} for end in range(len(reply) + 1)]
    test_message.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == entry["stdout_head"][0]
    assert lines[1].replace(worker.url, "http://WORKER") == entry["stdout_head"][1]
    assert lines[2:] == [reply]  # upstream prints the last word only
    sent = worker.requests[-1].question
    assert sent["stop"] == "</s>" and sent["prompt"].endswith(" ASSISTANT:")
    assert worker.requests[-1].headers["User-Agent"] == "LLaVA Client"


def test_a_forgotten_worker_registers_again() -> None:
    """`request_to_forgotten_worker`: the heart beat sent with a request brings a worker back to a new controller."""

    class Recorded(BaseWorker):
        def get_queue_length(self) -> int:
            return 0

        async def stream(self, params: dict[str, Any]) -> Any:
            for one in ENTRIES["request_to_forgotten_worker"]["frames"]:
                yield wire.frame(**one)

    with serving(create_app(Controller("lottery"))) as controller:
        worker = Recorded(controller, "http://localhost:1", "abcdef", False, [MODEL])
        with serving(create_worker_app(worker)) as address:
            replay("request_to_forgotten_worker", address)
        worker.send_heart_beat()
        replay("list_after_reregistration", controller)
