"""The controller's state: expiry by a clock, lottery, odd speeds, threads; its flags; its server."""

import argparse
import socket
import threading
from typing import Any

import pytest

from llava.program import RequestError
from llava.serve import controller as program
from llava.serve.access import LOOPBACK_HOSTS, RegistrationRules
from llava.serve.control.routes import create_app
from llava.serve.control.state import Controller, DispatchMethod
from llava.serve.http_layer import listen
from tests.support.serving import free_port, serving, wait_until


def status(*models: str, speed: float = 1, queue_length: int = 0) -> dict[str, Any]:
    return {"model_names": list(models), "speed": speed, "queue_length": queue_length}


def test_expiry_by_the_clock() -> None:
    now = [0.0]
    controller = Controller("shortest_queue", clock=lambda: now[0])
    controller.register_worker("beats", True, status("m"))
    controller.register_worker("by hand", False, status("m"))
    now[0] = 30.0
    assert controller.remove_expired() == []
    now[0] = 30.1
    assert controller.remove_expired() == ["beats"]
    assert not controller.receive_heart_beat("beats", 0)  # it will register again
    now[0] = 1e9
    assert controller.remove_expired() == []
    assert list(controller.worker_info) == ["by hand"]


def test_application_expires_workers() -> None:
    """`expire_every` is 30 s by default: a worker disappears 30 to 60 s after its last beat."""
    controller = Controller("shortest_queue", expiration=0)
    with serving(create_app(controller, expire_every=0.01)):
        controller.register_worker("w", True, status("m"))
        wait_until(lambda: not controller.workers())


def test_lottery() -> None:
    draws: list[Any] = []

    def choose(names: list[str], weights: list[float]) -> list[str]:
        draws.append((names, weights))
        return [names[-1]]

    controller = Controller(DispatchMethod.LOTTERY, choose=choose)
    controller.register_worker("a", True, status("m", speed=1))
    controller.register_worker("b", True, status("n", speed=5))
    controller.register_worker("c", True, status("m", speed=2.5))
    assert controller.get_worker_address("m") == "c"
    assert draws == [(["a", "c"], [1, 2.5])]
    assert controller.worker_info["c"].queue_length == 0
    assert controller.get_worker_address("x") == ""
    controller.register_worker("d", True, status("slow", speed=0.00009))
    assert controller.get_worker_address("slow") == ""


def test_speed_zero_is_the_last_choice() -> None:
    """A controller without workers, as a worker of another one."""
    controller = Controller("shortest_queue")
    controller.register_worker("empty", True, status("m", speed=0))
    assert controller.get_worker_address("m") == "empty"
    controller.register_worker("busy", True, status("m", queue_length=100))
    assert controller.get_worker_address("m") == "busy"


def test_registering_again_replaces_the_entry() -> None:
    controller = Controller("shortest_queue")
    controller.register_worker("w", True, status("old", queue_length=4))
    controller.register_worker("w", False, status("new"))
    assert controller.list_models() == ["new"]
    assert controller.worker_info["w"].queue_length == 0
    assert not controller.worker_info["w"].check_heart_beat


def test_threads_do_not_disturb_each_other() -> None:
    """Registering, expiring, listing and dispatching at once."""
    controller = Controller("shortest_queue", expiration=-1)  # everything expires at once
    failures: list[Exception] = []
    done = threading.Event()

    def repeat(action: Any) -> None:
        try:
            while not done.is_set():
                action()
        except Exception as error:
            failures.append(error)

    number = iter(range(10**9))
    actions = [
        lambda: controller.register_worker(f"w{next(number) % 50}", True, status("m")),
        controller.remove_expired,
        controller.list_models,
        controller.workers,
        lambda: controller.get_worker_address("m"),
    ]
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    wait_until(lambda: next(number) > 2000)
    done.set()
    for thread in threads:
        thread.join(10)
    assert failures == []


# The program.


def test_flags() -> None:
    args = vars(program.build_parser().parse_args([]))
    assert (args["host"], args["port"], args["dispatch_method"]) == ("localhost", 21001, "shortest_queue")
    assert args["allow_hosts"] == LOOPBACK_HOSTS and args["heart_beat_expiration"] == 30
    parsed = program.build_parser().parse_args(["--dispatch-method", "lottery", "--allow-hosts", "a,B"])
    assert (parsed.dispatch_method, parsed.allow_hosts) == ("lottery", ("a", "b"))
    with pytest.raises(SystemExit):
        program.build_parser().parse_args(["--dispatch-method", "x"])


def test_no_flag_takes_the_prefixes_of_the_documents() -> None:
    parser: argparse.ArgumentParser = program.build_parser()
    flags = [flag for action in parser._actions for flag in action.option_strings]
    assert not [flag for flag in flags if flag.startswith(("--controller", "--worker"))]


@pytest.mark.parametrize("flag", ["--heart-beat-expiration", "--stream-timeout", "--max-request-mb"])
def test_bad_values(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["controller", flag, "0"])
    with pytest.raises(RequestError, match=f"{flag} must be above 0"):
        program.main()


def test_main_passes_its_flags_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setenv("LLAVA_SECRET", "s3cret")
    monkeypatch.setattr("sys.argv", ["controller", "--port", "1", "--stream-timeout", "7", "--allow-hosts", "*"])
    monkeypatch.setattr(program, "build_logger", lambda *names: seen.update(log=names))
    monkeypatch.setattr("llava.serve.http_layer.run_server", lambda app, host, port: seen.update(host=host, port=port))
    monkeypatch.setattr("llava.serve.control.routes.create_app", lambda controller, **options: seen.update(options))
    program.main()
    assert (seen["log"], seen["host"], seen["port"]) == (("controller", "controller.log"), "localhost", 1)
    assert seen["rules"] == RegistrationRules("s3cret", ("*",), False)
    assert (seen["timeouts"].stream, seen["timeouts"].connect, seen["expire_every"]) == (7, 5, 30)


def test_a_taken_port_is_reported() -> None:
    port = free_port()
    sockets = listen("localhost", port)
    try:
        with pytest.raises(RequestError, match=rf"--host localhost --port {port} cannot be used: .*choose another"):
            listen("localhost", port)
    finally:
        for one in sockets:
            one.close()
    for host, bad in (("no.such.host.invalid", port), ("192.0.2.1", port), ("localhost", 99_999)):
        with pytest.raises(RequestError, match="cannot be used"):
            listen(host, bad)


def test_small_pieces_are_sent_at_once() -> None:
    """asyncio switches TCP_NODELAY on for connections of a socket that names its protocol, and for no other."""
    sockets = listen("localhost", 0)
    try:
        assert {one.proto for one in sockets} == {socket.IPPROTO_TCP}
    finally:
        for one in sockets:
            one.close()


def test_loopback_only_by_default() -> None:
    sockets = listen(program.build_parser().parse_args([]).host, 0)
    try:
        assert {one.getsockname()[0] for one in sockets} <= {"127.0.0.1", "::1"}
    finally:
        for one in sockets:
            one.close()
