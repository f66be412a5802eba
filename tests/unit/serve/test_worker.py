"""What workers share: slots, the gate, the endpoints, the end of a request when its client goes away."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from llava.program import RequestError
from llava.serve import wire
from llava.serve.worker.app import create_worker_app
from llava.serve.worker.base import add_worker_arguments
from llava.serve.worker.slots import Slots
from llava.utils import server_error_msg
from tests.support.serving import Counting, serving, wait_until


@pytest.fixture
def worker() -> Counting:
    return Counting()


@contextmanager
def served(worker: Counting, **options: Any) -> Iterator[str]:
    with serving(create_worker_app(worker, **options)) as address:
        yield f"{address}/worker_generate_stream"


def frames(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200
    return list(wire.read_frames([response.content]))


# The gate.


def test_synchronous_views(worker: Counting) -> None:
    expected = [wire.frame("p 0"), wire.frame("p 0 1")]
    assert list(worker.generate_stream({"prompt": "p", "n": 2})) == expected
    assert list(worker.generate_stream_gate({"prompt": "p", "n": 2})) == expected
    with pytest.raises(RequestError):
        list(worker.generate_stream({"prompt": "p", "fail": "request"}))
    view = worker.generate_stream_gate({"prompt": "p"})
    next(view)
    assert worker.get_queue_length() == 1
    view.close()
    assert worker.get_queue_length() == worker.running == 0


@pytest.mark.parametrize(("kind", "message"), [("request", "the reason"), ("image", "the reason"), ("bug", None)])
def test_every_exception_is_one_error_frame(worker: Counting, kind: str, message: str | None) -> None:
    pieces = list(worker.generate_stream_gate({"prompt": "p", "n": 2, "fail": kind, "details": True}))
    assert pieces == [wire.frame("p 0"), wire.frame("p 0 1"), wire.error_frame(1, message, with_details=True)]
    assert worker.get_queue_length() == 0


def test_status(worker: Counting) -> None:
    assert worker.get_status() == {"model_names": ["m"], "speed": 1, "queue_length": 0}


# Slots.


def test_slots_are_handed_on_in_order() -> None:
    async def run() -> list[int]:
        slots, order = Slots(2, 10), []

        async def hold(number: int) -> None:
            async with slots.one():
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*map(hold, range(6)))
        assert len(slots) == 0
        return order

    assert asyncio.run(run()) == list(range(6))


def test_too_many_wait() -> None:
    async def run() -> None:
        slots = Slots(1, 1)
        async with slots.one():
            waiting = asyncio.ensure_future(slots._take())
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="the server is busy: 1 requests are waiting; try again"):
                await slots._take()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert len(slots) == 1
        assert len(slots) == 0

    asyncio.run(run())


def test_a_slot_passed_to_a_client_that_left_is_not_lost() -> None:
    async def run() -> None:
        slots = Slots(1, 5)
        await slots._take()
        gone, next_one = asyncio.ensure_future(slots._take()), asyncio.ensure_future(slots._take())
        await asyncio.sleep(0)
        slots._give_back()  # to the first, who leaves before it wakes up
        gone.cancel()
        await asyncio.wait_for(next_one, 10)
        slots._give_back()
        assert len(slots) == 0

    asyncio.run(run())


def test_slots_across_threads() -> None:
    worker, results = Counting(limit=2), []
    threads = [
        threading.Thread(target=lambda: results.append(list(worker.generate_stream_gate({"prompt": "p", "n": 50}))))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(one) for one in results] == [50] * 12
    assert worker.most_running <= 2
    assert worker.get_queue_length() == 0


# HTTP.


def test_stream_has_the_recorded_headers(worker: Counting) -> None:
    with served(worker) as url:
        response = httpx.post(url, json={"prompt": "p"})
    assert set(response.headers) == {"date", "server", "transfer-encoding"}
    assert frames(response)[-1] == {"text": "p 0 1 2", "error_code": 0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "no prompt"),
        (b'{"prompt": null}', "no prompt"),
        (b'{"prompt": ["p"]}', "no prompt"),
    ],
)
def test_malformed_requests_are_one_frame(
    worker: Counting, body: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with served(worker) as url:
        (frame,) = frames(httpx.post(url, content=body))
    assert frame == {"text": server_error_msg, "error_code": 1}
    assert message in caplog.text
    assert worker.ended == 0


def test_large_bodies_are_not_parsed(worker: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.serve.worker.app.parse_json_object", lambda body: pytest.fail("parsed"))
    with served(worker, max_body_bytes=1000) as url:
        announced = httpx.post(url, content=json.dumps({"prompt": "p" * 1000}).encode())
        piecewise = httpx.post(url, content=iter([b"p" * 400] * 3))
    for answer in (announced, piecewise):
        assert answer.status_code == 413
        assert "larger than 1000 bytes" in answer.json()["message"]


def test_status_and_health(worker: Counting) -> None:
    with served(worker) as url:
        base = url.rpartition("/")[0]
        assert httpx.post(f"{base}/worker_get_status").json() == worker.get_status()
        assert httpx.get(f"{base}/health").json() == {"status": "ok"}


def test_hanging_up_ends_the_work_at_once(worker: Counting) -> None:
    """Also between two tokens."""
    with served(worker) as url, httpx.Client() as client:
        with client.stream("POST", url, json={"prompt": "p", "wait": True}) as response:
            pieces = response.iter_raw()  # kept: the connection is closed with it
            next(pieces)
            assert worker.get_queue_length() == 1
        wait_until(lambda: worker.ended == 1)
        wait_until(lambda: worker.get_queue_length() == 0)


def test_hanging_up_while_waiting_for_a_slot() -> None:
    worker = Counting(limit=1)
    with served(worker) as url, httpx.Client() as first, httpx.Client() as second:
        with first.stream("POST", url, json={"prompt": "p", "wait": True}) as response:
            pieces = response.iter_raw()  # kept: the connection is closed with it
            next(pieces)
            with second.stream("POST", url, json={"prompt": "p"}):
                wait_until(lambda: worker.get_queue_length() == 2)
            wait_until(lambda: worker.get_queue_length() == 1)
        wait_until(lambda: worker.get_queue_length() == 0)
        assert len(frames(httpx.post(url, json={"prompt": "p"}))) == 3


def test_many_streams_at_once() -> None:
    """No thread per stream: 80 run at once, 64 wait, the rest are refused."""
    worker = Counting(limit=80)

    async def ask(url: str) -> Counter:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            body = {"prompt": "p", "wait": True, "details": True}
            asked = [asyncio.ensure_future(client.post(url, json=body)) for _ in range(150)]
            while sum(one.done() for one in asked) < 6:
                await asyncio.sleep(0.01)
            worker.go_on.set()
            answers = [frames(one) for one in await asyncio.gather(*asked)]
        return Counter(answer[-1].get("message") for answer in answers)

    with served(worker) as url:
        assert asyncio.run(ask(url)) == {None: 144, "the server is busy: 64 requests are waiting; try again": 6}
    assert worker.most_running == 80
    assert worker.get_queue_length() == 0


# Registration.


class NotedBeat:
    def __init__(self) -> None:
        self.calls: Counter = Counter()

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.update([name])


def test_heart_beats_of_a_request() -> None:
    worker = Counting(no_register=False)
    worker.heart_beat = NotedBeat()
    with served(worker) as url:
        httpx.post(url, json={"prompt": "p"})
    worker.register_to_controller()
    worker.send_heart_beat()
    assert worker.heart_beat.calls == {"start": 1, "nudge": 2, "stop": 1, "register": 1, "beat": 1}


def test_no_register_means_none(worker: Counting) -> None:
    worker.heart_beat = NotedBeat()
    with served(worker) as url:
        httpx.post(url, json={"prompt": "p"})
    worker.register_to_controller()
    worker.send_heart_beat()
    assert worker.heart_beat.calls == {"stop": 1}


def test_without_a_controller_requests_are_answered() -> None:
    """Upstream's worker hangs here."""
    worker = Counting(no_register=False)
    with served(worker) as url:
        assert len(frames(httpx.post(url, json={"prompt": "p"}))) == 3


def test_flags() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_worker_arguments(parser)
    args = vars(parser.parse_args(["--controller", "http://c", "--worker", "http://w"]))
    assert (args["controller_address"], args["worker_address"]) == ("http://c", "http://w")
    args = vars(parser.parse_args([]))
    assert {name: args[name] for name in ("host", "port", "worker_address", "controller_address")} == {
        "host": "localhost",
        "port": 21002,
        "worker_address": "http://localhost:21002",
        "controller_address": "http://localhost:21001",
    }
    assert (args["limit_model_concurrency"], args["stream_interval"], args["no_register"]) == (5, 1, False)
    assert args["model_name"] is None
