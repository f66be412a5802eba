"""Heart beats: what is sent, when, and that nothing a controller does ends or floods them."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from llava.serve.access import RegistrationRules
from llava.serve.control.routes import create_app
from llava.serve.controller import Controller
from llava.serve.worker.heart_beat import HeartBeat
from tests.support.serve_doubles import old_worker
from tests.support.serving import serving, wait_until

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 3}
NAME = "http://localhost:40000"


class Scripted(HeartBeat):
    """Sends nothing: notes what it would send, and gives scripted answers."""

    def __init__(self, answers: list[Any], **options: Any) -> None:
        super().__init__("http://localhost:21001/", NAME, lambda: STATUS, **options)
        self.answers = answers
        self.sent: list[tuple[str, Any]] = []

    def _post(self, path: str, body: dict[str, Any]) -> tuple[Any] | None:
        self.sent.append((path, body))
        return self.answers.pop(0) if self.answers else None

    def paths(self) -> list[str]:
        return [path for path, _ in self.sent]


def test_registration_and_beat() -> None:
    beat = Scripted([(None,), ({"exist": True},)])
    assert beat.register() and beat.beat()
    assert beat.sent == [
        ("/register_worker", {"worker_name": NAME, "check_heart_beat": True, "worker_status": STATUS}),
        ("/receive_heart_beat", {"worker_name": NAME, "queue_length": 3}),
    ]


def test_unknown_worker_registers_again() -> None:
    beat = Scripted([({"exist": False},), (None,)])
    assert beat.beat()
    assert beat.paths() == ["/receive_heart_beat", "/register_worker"]


def test_failed_registration_is_a_failure() -> None:
    """It is tried again with the next beat."""
    assert not Scripted([({"exist": False},), None]).beat()
    assert not Scripted([None]).beat()


@pytest.mark.parametrize("answer", [None, [], {}, {"models": []}, "ok"])
def test_something_else_than_a_controller(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert not Scripted([(answer,)]).beat()
    assert "check --controller-address" in caplog.text


def test_nudge_brings_the_next_beat_forward() -> None:
    beat = Scripted([(None,), *[({"exist": True},)] * 5], interval=1000)
    beat.start()
    beat.start()  # changes nothing
    wait_until(lambda: beat.sent)
    beat.nudge()
    wait_until(lambda: len(beat.sent) == 2)
    beat.stop()
    assert beat.paths() == ["/register_worker", "/receive_heart_beat"]
    assert not beat._thread.is_alive()


def test_interval() -> None:
    beat = Scripted([(None,), *[({"exist": True},)] * 3], interval=0.01, retry=1000)
    beat.start()
    wait_until(lambda: len(beat.sent) >= 4)
    beat.stop()


def test_after_a_failure_nudges_do_not_hammer() -> None:
    beat = Scripted([], retry=1000)
    beat.start()
    wait_until(lambda: beat.sent)
    for _ in range(100):
        beat.nudge()
    assert not beat._stopping.wait(0.2)  # the time in which a beat without this guard would come
    beat.stop()
    assert beat.paths() == ["/register_worker"]


def test_no_error_ends_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    beat = Scripted([], retry=0.01)
    failures = iter([RuntimeError("status failed"), ZeroDivisionError()])

    def status() -> dict[str, Any]:
        for failure in failures:
            raise failure
        return STATUS

    beat.get_status = status
    beat.start()
    wait_until(lambda: "/receive_heart_beat" in beat.paths())
    beat.stop()
    assert "status failed" in caplog.text


def test_one_thing_at_a_time() -> None:
    """A controller that hangs holds one request, not one per nudge."""
    entered, leave = threading.Semaphore(0), threading.Event()

    class Hanging(Scripted):
        def _post(self, path: str, body: dict[str, Any]) -> tuple[Any] | None:
            super()._post(path, body)
            entered.release()
            leave.wait(20)
            return (None,)

    beat = Hanging([])
    beat.start()
    assert entered.acquire(timeout=20)
    for _ in range(50):
        beat.nudge()
    beat.stop(timeout=0)  # does not wait for it either
    assert len(beat.sent) == 1
    leave.set()


def running(controller: str, **options: Any) -> HeartBeat:
    return HeartBeat(controller, NAME, lambda: STATUS, interval=0.02, retry=0.02, **options)


def models(controller: str) -> Callable[[], list[str]]:
    return lambda: httpx.post(f"{controller}/list_models").json()["models"]


def test_with_a_controller_that_needs_the_secret() -> None:
    state = Controller("shortest_queue")
    with serving(create_app(state, rules=RegistrationRules(secret="s3cret"))) as address:
        beat = running(address)
        assert not beat.register() and not beat.beat()
        beat = running(address, secret="s3cret")
        assert beat.register() and beat.beat()
        assert state.worker_info[NAME].queue_length == 3
        state.worker_info.clear()  # as after a restart
        beat.start()
        wait_until(models(address))
        beat.stop()


def test_network_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert not running("http://127.0.0.1:9").register()
    assert not running("no address").beat()
    with old_worker([]) as wrong:  # 404
        assert not running(wrong.url).beat()
    assert caplog.text.count("cannot be reached") == 2
    assert "status 404" in caplog.text


def test_the_secret_follows_no_redirect() -> None:
    with old_worker([]) as first, old_worker([]) as second:
        first.redirect = second.url
        assert not running(first.url, secret="s3cret").register()
        assert first.requests[0].headers["X-LLaVA-Secret"] == "s3cret"
        assert second.requests == []


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with old_worker([]) as proxy, serving(create_app(Controller("lottery"))) as address:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert running(address, secret="s3cret").register()
        assert proxy.requests == []
