"""The controller between client and worker: streams, refreshing, figures, and how workers fail."""

import asyncio
import json
import sys
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse

from llava.serve import register_worker, test_message, wire
from llava.serve.control.routes import create_app
from llava.serve.control.state import WorkerInfo
from llava.serve.control.worker_client import Timeouts
from llava.serve.controller import Controller
from llava.serve.worker.app import create_worker_app
from llava.utils import server_error_msg
from tests.support.serve_doubles import WorkerDouble, old_worker
from tests.support.serving import Counting, serving, wait_until

FRAMES = [{"text": f"p {number}", "error_code": 0} for number in range(3)]
REQUEST = {"model": "m", "prompt": "p"}


@pytest.fixture
def worker(worker: WorkerDouble) -> WorkerDouble:
    worker.frames = list(FRAMES)
    return worker


def ask(controller: str, request: Any = REQUEST) -> list[dict[str, Any]]:
    response = httpx.post(
        f"{controller}/worker_generate_stream",
        json={**request, "details": True} if isinstance(request, dict) else request,
    )
    assert response.status_code == 200
    return list(wire.read_frames([response.content]))


def error(code: int, message: str) -> dict[str, Any]:
    return {"text": server_error_msg, "error_code": code, "message": message}


# Streams.


def test_frames_come_one_by_one(controller: str, worker: WorkerDouble) -> None:
    worker.behaviour.hold.clear()
    with httpx.Client() as client, client.stream("POST", f"{controller}/worker_generate_stream", json=REQUEST) as reply:
        pieces = wire.read_frames(reply.iter_raw())
        for frame in FRAMES:
            worker.behaviour.hold.set()
            assert next(pieces) == frame


def test_no_worker_is_one_frame(controller: str, worker: WorkerDouble) -> None:
    """Upstream sends a second frame with code 3."""
    assert ask(controller, {"model": "x", "prompt": "p"}) == [error(2, "no worker serves the model 'x' now")]
    for malformed in ({"prompt": "p"}, {"model": 3, "prompt": "p"}):
        assert ask(controller, malformed) == [error(2, "the request names no model")]
    for malformed in ([], "m"):  # nothing that could ask for the reason
        assert ask(controller, malformed) == [{"text": server_error_msg, "error_code": 2}]
    assert worker.requests == []


def test_worker_dies_in_the_middle_of_a_frame(controller: str, worker: WorkerDouble) -> None:
    """Exactly one frame with error 3, and nothing of the broken frame before it."""
    worker.frames = [*FRAMES[:2], ConnectionError]
    assert ask(controller) == [*FRAMES[:2], error(3, "the worker of this model broke off; try again")]


def test_worker_that_is_gone(controller: str, worker: WorkerDouble) -> None:
    worker.close()
    assert ask(controller) == [error(3, "the worker of this model cannot be reached; try again in a minute")]


def test_worker_falls_silent(controller: str, worker: WorkerDouble) -> None:
    worker.behaviour.hold.clear()
    assert ask(controller) == [error(3, "the worker of this model has fallen silent; try again")]


def test_a_slow_worker_is_no_dead_one(state: Controller, worker: WorkerDouble) -> None:
    """The time limit for a connection is not that for a token."""
    with serving(create_app(state, timeouts=Timeouts(connect=0.2, stream=30))) as address:
        worker.behaviour.hold.clear()
        timer = threading.Timer(0.6, worker.behaviour.hold.set)
        timer.start()
        assert ask(address) == FRAMES


@pytest.mark.parametrize("frames", [[], ["no frame at all"]])
def test_worker_that_answers_nothing_or_nonsense(controller: str, worker: WorkerDouble, frames: list[Any]) -> None:
    """An empty answer is an error; the content of frames is between worker and client."""
    worker.frames = frames
    response = httpx.post(f"{controller}/worker_generate_stream", json={**REQUEST, "details": True})
    if frames:
        assert response.content == b'"no frame at all"\0'
    else:
        assert list(wire.read_frames([response.content])) == [
            error(3, "the worker ended its answer too early; try again")
        ]


def test_worker_that_refuses(controller: str, state: Controller) -> None:
    with old_worker(["m"]) as redirecting, old_worker(["m"]) as other:
        state.register_worker(redirecting.url, True, redirecting.status)
        redirecting.redirect = other.url
        assert ask(controller) == [error(3, "the worker answered with status 307; try again")]
        assert other.requests == []


def test_hanging_up_reaches_the_worker(controller: str, state: Controller) -> None:
    worker = Counting()
    with serving(create_worker_app(worker)) as address, httpx.Client() as client:
        state.register_worker(address, True, worker.get_status())
        body = {**REQUEST, "wait": True}
        with client.stream("POST", f"{controller}/worker_generate_stream", json=body) as reply:
            pieces = reply.iter_raw()
            next(pieces)
            assert worker.get_queue_length() == 1
        wait_until(lambda: worker.ended == 1 and worker.get_queue_length() == 0)


def test_many_streams_do_not_block_the_controller(state: Controller) -> None:
    """While 100 streams run, other requests are answered."""
    worker = Counting(limit=100)

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            body = {**REQUEST, "wait": True}
            streams = [
                asyncio.ensure_future(client.post(f"{controller}/worker_generate_stream", json=body))
                for _ in range(100)
            ]
            while worker.running < 100:
                await asyncio.sleep(0.01)
            assert (await client.post(f"{controller}/list_models")).json() == {"models": ["m"]}
            worker.go_on.set()
            for answer in await asyncio.gather(*streams):
                assert len(list(wire.read_frames([answer.content]))) == 3

    # A controller whose streams may be silent for longer.
    with serving(create_worker_app(worker)) as address, serving(create_app(state)) as controller:
        state.register_worker(address, True, worker.get_status())
        asyncio.run(run())


# Status and refresh.


@pytest.mark.parametrize(
    "status",
    [
        None,
        [],
        {},
        {"model_names": "m", "speed": 1, "queue_length": 0},
        {"model_names": [1], "speed": 1, "queue_length": 0},
        {"model_names": ["m"], "speed": True, "queue_length": 0},
        {"model_names": ["m"], "speed": -1, "queue_length": 0},
        {"model_names": ["m"], "speed": 1, "queue_length": 0.5},
        {"model_names": ["m"], "speed": 1, "queue_length": -1},
        {"model_names": ["m"], "speed": 1, "queue_length": 10**400},
        {"model_names": ["m"], "speed": 10**400, "queue_length": 0},
        {"model_names": ["m"], "speed": float("nan"), "queue_length": 0},
        {"model_names": ["m" * 300], "speed": 1, "queue_length": 0},
        {"model_names": [""], "speed": 1, "queue_length": 0},
        {"model_names": ["\ud800"], "speed": 1, "queue_length": 0},
        {"model_names": ["m"], "speed": 1, "queue_length": 0, "and": "x" * 2**20},
    ],
)
def test_worker_without_a_proper_status(
    controller: str, state: Controller, status: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer stays null for old workers, nothing is registered, and the failure is logged."""
    with old_worker([]) as worker:
        worker.status = status
        answer = httpx.post(f"{controller}/register_worker", json={"worker_name": worker.url, "check_heart_beat": True})
        assert (answer.status_code, answer.json()) == (200, None)
        assert state.worker_info == {} and f"No status from {worker.url}" in caplog.text
    if status and "and" not in status:
        body = {"worker_name": "http://localhost:1", "check_heart_beat": True, "worker_status": status}
        as_json = {"Content-Type": "application/json"}
        answer = httpx.post(f"{controller}/register_worker", content=json.dumps(body), headers=as_json)
        assert answer.status_code == 400
        assert state.worker_info == {}


def test_status_that_never_ends(controller: str, state: Controller) -> None:
    """Drop by drop, each sooner than a read timeout: the time for the whole is limited too."""
    app, left = FastAPI(), threading.Event()

    async def drops() -> Any:
        try:
            while True:
                yield b" "
                await asyncio.sleep(0.02)
        finally:
            left.set()

    @app.post("/worker_get_status")
    async def status() -> Response:
        return StreamingResponse(drops())

    with serving(app) as address:
        body = {"worker_name": address, "check_heart_beat": True}
        assert httpx.post(f"{controller}/register_worker", json=body).json() is None
        assert state.worker_info == {}
        assert left.wait(10)


def test_table_is_never_empty_while_refreshing(controller: str, state: Controller, worker: WorkerDouble) -> None:
    app, asked, answer = FastAPI(), threading.Event(), threading.Event()

    @app.post("/worker_get_status")
    async def status() -> dict[str, Any]:
        asked.set()
        await asyncio.to_thread(answer.wait, 10)
        return {"model_names": ["slow", "new"], "speed": 1, "queue_length": 7}

    slow = Timeouts(status=20)
    with serving(app) as address, serving(create_app(state, timeouts=slow)) as controller:
        state.register_worker(address, True, {"model_names": ["slow"], "speed": 1, "queue_length": 0})
        refreshing = threading.Thread(target=lambda: httpx.post(f"{controller}/refresh_all_workers", timeout=30))
        refreshing.start()
        assert asked.wait(10)
        assert httpx.post(f"{controller}/list_models").json() == {"models": ["m", "slow"]}
        answer.set()
        refreshing.join(20)
        assert httpx.post(f"{controller}/list_models").json() == {"models": ["m", "slow", "new"]}
        assert state.worker_info[address].queue_length == 7


def test_a_worker_that_reports_during_a_refresh_stays(state: Controller) -> None:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    state.register_worker("w", True, status)
    asked = state.workers()["w"]
    state.receive_heart_beat("w", 1)
    state.apply_status("w", asked, None)
    assert "w" in state.worker_info
    state.apply_status("w", state.workers()["w"], None)
    assert "w" not in state.worker_info
    state.apply_status("w", asked, status)  # removed meanwhile: stays so
    assert state.worker_info == {}


def test_refreshes_share_their_questions(controller: str, worker: WorkerDouble) -> None:
    worker.behaviour.hold.set()

    async def run() -> None:
        async with httpx.AsyncClient() as client:
            await asyncio.gather(*(client.post(f"{controller}/refresh_all_workers") for _ in range(20)))

    asyncio.run(run())
    assert 1 <= len(worker.requests) < 20


def test_controller_as_a_worker_of_another(controller: str, state: Controller, worker: WorkerDouble) -> None:
    upper_state = Controller("shortest_queue")
    with old_worker(["n", "m"], queue_length=2, speed=3) as second, serving(create_app(upper_state)) as upper:
        state.register_worker(second.url, True, second.status)
        assert httpx.post(f"{controller}/worker_get_status").json() == {
            "model_names": ["m", "n"],
            "speed": 4,
            "queue_length": 2,
        }
        httpx.post(f"{upper}/register_worker", json={"worker_name": controller, "check_heart_beat": False})
        assert ask(upper) == FRAMES


def test_controllers_in_a_circle(controller: str, state: Controller) -> None:
    """One that is registered with itself answers, instead of asking itself for ever."""
    state.register_worker(controller, False, {"model_names": ["m"], "speed": 1, "queue_length": 0})
    assert httpx.post(f"{controller}/worker_get_status").json()["model_names"] == []
    assert [frame["error_code"] for frame in ask(controller)] == [2]


def test_controllers_are_counted_on_the_way(controller: str, worker: WorkerDouble) -> None:
    for hops, status in (("0", 200), ("3", 200), ("4", 503), ("-1", 503), ("x", 503)):
        answer = httpx.post(f"{controller}/worker_get_status", headers={"X-LLaVA-Hops": hops})
        assert answer.status_code == status
    httpx.post(f"{controller}/worker_generate_stream", json=REQUEST, headers={"X-LLaVA-Hops": "2"})
    assert [request.headers["X-LLaVA-Hops"] for request in worker.requests] == ["1", "4", "3"]


def test_proxies_of_the_environment_are_not_used(worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would see what users say."""
    with old_worker([]) as proxy, httpx.Client(trust_env=False) as client:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        state = Controller("shortest_queue")
        state.register_worker(worker.url, True, worker.status)
        with serving(create_app(state)) as controller:
            answer = client.post(f"{controller}/worker_generate_stream", json=REQUEST)
            flags = ["--controller", controller]
            monkeypatch.setattr(sys, "argv", ["register_worker", *flags, "--worker-name", worker.url])
            register_worker.main()
            monkeypatch.setattr(sys, "argv", ["test_message", *flags, "--model-name", "m"])
            test_message.main()
        assert list(wire.read_frames([answer.content])) == FRAMES
        assert proxy.requests == []


def test_web_pages_may_not_ask(state: Controller) -> None:
    """Neither the controller nor a worker, whatever the page calls its content; programs send no `Origin`."""
    page, worker = {"Origin": "http://pages.example"}, Counting()
    spy = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    registration = {"worker_name": "http://localhost:9", "check_heart_beat": False, "worker_status": spy}
    with serving(create_app(state)) as controller, serving(create_worker_app(worker)) as address:
        for kind in ("text/plain", "application/json"):
            headers = {**page, "Content-Type": kind}
            asked = [
                httpx.post(f"{controller}/register_worker", json=registration, headers=headers),
                httpx.post(f"{controller}/worker_generate_stream", json=REQUEST, headers=headers),
                httpx.post(f"{address}/worker_generate_stream", json=REQUEST, headers=headers),
            ]
            assert {answer.status_code for answer in asked} == {403}
        assert httpx.post(f"{controller}/v1/chat/completions", content="{}", headers=page).status_code == 403
        assert httpx.post(f"{controller}/v1/chat/completions", json={}, headers=page).status_code == 400
        assert state.list_models() == [] and worker.ended == 0
        assert httpx.get(f"{controller}/v1/models", headers=page).status_code == 200
        assert "access-control-allow-origin" not in httpx.options(f"{controller}/v1/models", headers=page).headers


# Figures and limits.


def test_metrics(state: Controller, worker: WorkerDouble) -> None:
    with serving(create_app(state)) as controller:
        ask(controller)
        ask(controller, {"model": "x", "prompt": "p"})
        text = httpx.get(f"{controller}/metrics").text
        assert httpx.get(f"{controller}/health").json() == {"status": "ok"}
    for line in (
        "llava_controller_workers 1.0",
        "llava_controller_queue_length 1.0",
        'llava_controller_relayed_total{endpoint="worker_generate_stream",outcome="started"} 1.0',
        'llava_controller_relayed_total{endpoint="worker_generate_stream",outcome="no_worker"} 1.0',
    ):
        assert line in text.splitlines()


def test_figures_belong_to_their_app() -> None:
    first, second = Controller("lottery"), Controller("lottery")
    create_app(first)
    first.worker_info["w"] = WorkerInfo(["m"], 1, 0, False, 0.0)
    with serving(create_app(second)) as address:
        assert "llava_controller_workers 0.0" in httpx.get(f"{address}/metrics").text


def test_large_bodies_are_refused(state: Controller, worker: WorkerDouble) -> None:
    with serving(create_app(state, max_body_bytes=1000)) as controller:
        for path in ("worker_generate_stream", "v1/chat/completions", "register_worker"):
            answer = httpx.post(f"{controller}/{path}", json={**REQUEST, "prompt": "p" * 1000})
            assert answer.status_code == 413
    assert worker.requests == []
