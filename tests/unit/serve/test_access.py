"""Who may register. Every check has a case that fails without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.program import RequestError
from llava.serve import access
from llava.serve.access import RegistrationRefused, RegistrationRules, parse_hosts, read_secret
from llava.serve.control.routes import create_app
from llava.serve.controller import Controller
from tests.support.serve_doubles import WorkerDouble, old_worker
from tests.support.serving import serving

ANYWHERE = RegistrationRules(allowed_hosts=("*",))


# Addresses are checked before anything is sent there.


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:21002",
        "http://127.0.0.1:40000/",
        "https://LOCALHOST",
        "http://[::1]:40000",
        "http://[0:0:0:0:0:0:0:1]:40000",
        "http://localhost.:40000",
        "http://localhost/behind/a-proxy",
    ],
)
def test_workers_of_this_machine_may_register(address: str) -> None:
    RegistrationRules().check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.5:40000",
        "http://169.254.169.254",
        "http://example.com",
        "http://localhost.example.com",
        "http://2130706433:80",
        "http://0x7f.1",
        "http://0.0.0.0:21002",
    ],
)
def test_others_may_not_by_default(address: str) -> None:
    with pytest.raises(RegistrationRefused, match=r"start the controller with --allow-hosts"):
        RegistrationRules().check_address(address)
    ANYWHERE.check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:21002",
        "//localhost",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://localhost",
        "gopher://localhost:6379/_FLUSHALL",
        "http://",
        "http:///path",
        "http://user@localhost",
        "http://user:password@localhost:21002",
        "http://localhost@example.com",
        "http://example.com\\@localhost",
        "http:\\\\localhost",
        "http://localhost\\.example.com",
        "http://localhost:0",
        "http://localhost:65536",
        "http://localhost:",
        "http://localhost:-1",
        "http://localhost:http",
        "http://localhost?x=",
        "http://localhost/a?x=1",
        "http://localhost#a",
        "http://localhost/%2e%2e",
        "http://localhost/../admin",
        "http://localhost//evil",
        "http://localhost\r\nHost: evil",
        "http://local\thost",
        " http://localhost",
        "http://localhost/a b",
        "http://l\u00f6calhost",
        "http://\u2460\u2461\u2467.0.0.1",
        "http://[::1",
        "http://[::1%25eth0]",
        "http://[localhost]",
        "http://-localhost",
        "http://localhost:2\u00b2",
        "http://" + "a" * 600,
    ],
)
def test_only_addresses_can_be_registered(address: str) -> None:
    """Even where every host is allowed."""
    with pytest.raises(RegistrationRefused, match="http://host:port, nothing else"):
        ANYWHERE.check_address(address)


def test_allowed_hosts() -> None:
    rules = RegistrationRules(allowed_hosts=parse_hosts(" GPU1.lab., 10.0.0.5,[2001:DB8::1] ,"))
    for address in ("http://gpu1.lab:40000", "http://10.0.0.5", "http://[2001:db8:0::1]:1"):
        rules.check_address(address)
    for address in ("http://gpu2.lab", "http://10.0.0.50", "http://localhost:21002"):
        with pytest.raises(RegistrationRefused):
            rules.check_address(address)


# The secret.


def test_secret() -> None:
    rules = RegistrationRules(secret="s3cret")
    rules.check_secret("s3cret")
    for wrong in (None, "", "s3cre", "s3cret ", "S3CRET", "\xff"):
        with pytest.raises(RegistrationRefused, match="LLAVA_SECRET or --secret-file"):
            rules.check_secret(wrong)
    RegistrationRules().check_secret(None)
    RegistrationRules().check_secret("unneeded")
    assert not RegistrationRules().shows_secret("anything")  # no secret is set


def test_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda *pair: calls.append(pair))
    RegistrationRules(secret="a").shows_secret("b")
    assert calls == [(b"a", b"b")]


def test_reading_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secret"
    file.write_text(" from-file\n")
    file.chmod(0o600)
    monkeypatch.delenv("LLAVA_SECRET", raising=False)
    assert read_secret(None) is None
    monkeypatch.setenv("LLAVA_SECRET", "from-environment")
    assert read_secret(None) == "from-environment"
    assert read_secret(str(file)) == "from-file"
    assert caplog.text == ""
    file.chmod(0o644)
    assert read_secret(str(file)) == "from-file"
    assert "chmod 600" in caplog.text and "from-file" not in caplog.text
    for bad in ("", "\n", "two\nlines", "\u00e9"):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(RequestError, match="one line of printable ASCII"):
            read_secret(str(file))
    with pytest.raises(OSError, match="missing"):
        read_secret(str(tmp_path / "missing"))


# The same through HTTP.


@contextmanager
def controller_with(**rules: Any) -> Iterator[tuple[str, Controller]]:
    controller = Controller("shortest_queue")
    with serving(create_app(controller, rules=RegistrationRules(**rules))) as address:
        yield address, controller


@pytest.fixture
def worker() -> Iterator[WorkerDouble]:
    with old_worker(["llava"]) as fake:
        yield fake


def register(controller: str, name: str, secret: str | None = None, status: Any = None) -> httpx.Response:
    body = {"worker_name": name, "check_heart_beat": True, "worker_status": status}
    return httpx.post(f"{controller}/register_worker", json=body, headers={"X-LLaVA-Secret": secret} if secret else {})


def test_nothing_is_sent_to_a_refused_address(worker: WorkerDouble) -> None:
    with controller_with(allowed_hosts=("gpu1",)) as (address, controller):
        answer = register(address, worker.url)
        assert answer.status_code == 403
        assert "--allow-hosts 127.0.0.1" in answer.json()["message"]
        assert worker.requests == [] and controller.worker_info == {}


@pytest.mark.parametrize("name", ["file:///etc/passwd", "http://a@127.0.0.1", "http://127.0.0.1\\@evil"])
def test_strange_addresses_are_403(name: str) -> None:
    with controller_with() as (address, controller):
        status = {"model_names": ["llava"], "speed": 1, "queue_length": 0}
        assert register(address, name, status=status).status_code == 403
        assert controller.worker_info == {}


def test_controller_follows_no_redirect(worker: WorkerDouble) -> None:
    """A registered worker must not send its controller elsewhere (CVE-2024-9309)."""
    with old_worker(["secret-model"]) as inner, controller_with() as (address, controller):
        worker.redirect = f"{inner.url}/worker_get_status"
        assert register(address, worker.url).json() is None
        assert controller.worker_info == {} and inner.requests == []


def test_secret_is_wanted(worker: WorkerDouble) -> None:
    with controller_with(secret="s3cret") as (address, controller):
        for wrong in (None, "wrong"):
            answer = register(address, worker.url, wrong)
            assert answer.status_code == 403 and "shared secret" in answer.json()["message"]
        assert worker.requests == [] and controller.worker_info == {}
        assert register(address, worker.url, "s3cret").status_code == 200
        assert list(controller.worker_info) == [worker.url]
        beat = {"worker_name": worker.url, "queue_length": 99}
        assert httpx.post(f"{address}/receive_heart_beat", json=beat).status_code == 403
        assert controller.worker_info[worker.url].queue_length == 0


def test_a_model_has_one_owner(worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-85695: a worker of another machine must not receive the prompts meant for another worker's model."""
    monkeypatch.setattr(access, "is_loopback", lambda peer: False)
    with old_worker(["other", "llava"]) as stranger, controller_with() as (address, controller):
        assert register(address, worker.url).status_code == 200
        answer = register(address, stranger.url)
        assert answer.status_code == 403 and "another worker serves llava already" in answer.json()["message"]
        assert register(address, worker.url).status_code == 200  # its owner may come again
        assert list(controller.worker_info) == [worker.url]
        # Nor may it come by a harmless name and change it afterwards.
        stranger.status["model_names"] = ["other"]
        assert register(address, stranger.url).status_code == 200
        stranger.status["model_names"] = ["other", "llava"]
        httpx.post(f"{address}/refresh_all_workers")
        assert list(controller.worker_info) == [worker.url]


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.5", False),
     ("192.0.2.1", False), ("2001:db8::1", False), ("localhost", False), ("", False)],
)  # fmt: skip
def test_who_may_share_a_model(peer: str, is_local: bool) -> None:
    assert RegistrationRules().may_share_models(None, peer) == is_local
    assert RegistrationRules(allow_replicas=True).may_share_models(None, peer)
    rules = RegistrationRules(secret="s3cret")
    assert rules.may_share_models("s3cret", peer)
    assert rules.may_share_models("wrong", peer) == is_local  # `check_secret` refuses it before


@pytest.mark.parametrize("rules", [{}, {"secret": "s3cret"}, {"allow_replicas": True}])
def test_replicas(worker: WorkerDouble, rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine by default; from elsewhere with the secret or the flag."""
    if rules:
        monkeypatch.setattr(access, "is_loopback", lambda peer: False)
    with old_worker(["llava"]) as second, controller_with(**rules) as (address, controller):
        for one in (worker, second):
            assert register(address, one.url, rules.get("secret")).status_code == 200
        httpx.post(f"{address}/refresh_all_workers")
        assert list(controller.worker_info) == [worker.url, second.url]


def test_a_dead_owner_is_no_owner() -> None:
    clock = [0.0]
    controller = Controller("shortest_queue", clock=lambda: clock[0])
    status = {"model_names": ["llava"], "speed": 1, "queue_length": 0}
    controller.register_worker("http://localhost:1", True, status, may_share=False)
    clock[0] = 31.0
    controller.register_worker("http://localhost:2", True, status, may_share=False)
    assert controller.remove_expired() == ["http://localhost:1"]


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.serve.control.state.MAX_WORKERS", 2)
    controller = Controller("shortest_queue")
    status = {"model_names": [], "speed": 1, "queue_length": 0}
    for name in ("a", "b", "a"):
        controller.register_worker(name, True, status)
    with pytest.raises(RegistrationRefused, match="2 workers already"):
        controller.register_worker("c", True, status)
