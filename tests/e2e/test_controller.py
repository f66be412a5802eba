"""A real controller process with real workers: killed, restarted, forgotten. Waits for conditions, never for time."""

import base64
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.serve.http_client import stream_request
from tests.conftest import REPOSITORY, VECTORS
from tests.support.serving import free_port, program, wait_until

pytestmark = pytest.mark.e2e

MODULE = "llava.serve.controller"
# A worker process that speaks the wire, without a model: counts until it is killed.
WORKER = """
import asyncio, sys
from llava.serve import wire
from llava.serve.http_layer import run_server
from llava.serve.worker.app import create_worker_app
from llava.serve.worker.base import BaseWorker

class Counter(BaseWorker):
    def get_queue_length(self):
        return 0

    async def stream(self, params):
        for number in range(params["max_new_tokens"]):
            yield wire.frame(f"{params['prompt']} {number}")
            await asyncio.sleep(0.01)

controller, port, model = sys.argv[1:]
worker = Counter(controller, f"http://127.0.0.1:{port}", "abcdef", False, [model])
worker.heart_beat.interval = worker.heart_beat.retry = 0.1
run_server(create_worker_app(worker), "127.0.0.1", int(port))
"""


@contextmanager
def worker_process(controller: str, model: str, folder: Path) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with (folder / f"worker-{model}.out").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, controller, str(free_port()), model],
            cwd=folder, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def controller(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def models(controller: str) -> list[str]:
    try:
        return sorted(httpx.post(f"{controller}/list_models").json()["models"])
    except httpx.HTTPError:
        return ["no controller"]


def lists(controller: str, *expected: str) -> Callable[[], bool]:
    return lambda: models(controller) == sorted(expected)


def test_killed_workers_disappear(controller: str, port: int, tmp_path: Path) -> None:
    """Running requests get one clear error; the list forgets the worker by itself."""
    flags = ("--host", "127.0.0.1", "--port", str(port), "--heart-beat-expiration", "1")
    with program(MODULE, *flags, folder=tmp_path), worker_process(controller, "a", tmp_path) as worker:
        wait_until(lists(controller, "a"))
        frames: list[dict[str, Any]] = []
        started = threading.Event()

        def read() -> None:
            request = {"model": "a", "prompt": "p", "max_new_tokens": 100_000, "details": True}
            for frame in stream_request(controller, request):
                frames.append(frame)
                started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(20)
        with worker_process(controller, "b", tmp_path):
            wait_until(lists(controller, "a", "b"))
            worker.send_signal(signal.SIGKILL)
            reader.join(20)
            assert not reader.is_alive()
            assert [frame["error_code"] for frame in frames if frame["error_code"]] == [3]
            assert frames[-1]["error_code"] == 3 and "broke off" in frames[-1]["message"]
            wait_until(lists(controller, "b"))  # and the one that lives stays
            assert httpx.post(f"{controller}/get_worker_address", json={"model": "a"}).json() == {"address": ""}
    assert "Removed, no heart beat" in (tmp_path / "controller.log").read_text()


def test_replicas_on_this_machine(controller: str, port: int, tmp_path: Path) -> None:
    """Two workers of one model, without a secret and without a flag: both get requests."""
    with ExitStack() as stack:
        stack.enter_context(program(MODULE, "--port", str(port), folder=tmp_path))
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            stack.enter_context(worker_process(controller, "a", tmp_path / name))
        wait_until(lists(controller, "a"))
        found: set[str] = set()

        def ask() -> bool:
            answer = httpx.post(f"{controller}/get_worker_address", json={"model": "a"}).json()
            found.update(filter(None, [answer["address"]]))
            return len(found) == 2

        wait_until(ask)
        request = {"model": "a", "prompt": "p", "max_new_tokens": 2}
        for address in (*found, controller):
            assert [frame["text"] for frame in stream_request(address, request)] == ["p 0", "p 1"]


def test_refreshing_drops_the_dead_at_once(controller: str, port: int, tmp_path: Path) -> None:
    with program(MODULE, "--port", str(port), folder=tmp_path), worker_process(controller, "a", tmp_path) as worker:
        wait_until(lists(controller, "a"))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        assert httpx.post(f"{controller}/refresh_all_workers", timeout=20).json() is None
        assert models(controller) == []


def test_controller_restarts(controller: str, port: int, tmp_path: Path) -> None:
    """Heart beats bring the workers back; requests to workers are answered meanwhile."""
    flags = ("--host", "127.0.0.1", "--port", str(port))
    with program(MODULE, *flags, folder=tmp_path) as first, worker_process(controller, "a", tmp_path):
        wait_until(lists(controller, "a"))
        address = httpx.post(f"{controller}/get_worker_address", json={"model": "a"}).json()["address"]
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert models(controller) == ["no controller"]
        frames = list(stream_request(address, {"prompt": "p", "max_new_tokens": 2}))
        assert frames == [{"text": f"p {number}", "error_code": 0} for number in range(2)]
        with program(MODULE, *flags, folder=tmp_path):
            wait_until(lists(controller, "a"))


def test_workers_that_start_first(controller: str, port: int, tmp_path: Path) -> None:
    """Without a controller they try again until there is one."""
    with worker_process(controller, "a", tmp_path), program(MODULE, "--port", str(port), folder=tmp_path):
        wait_until(lists(controller, "a"))


def test_secret(controller: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the controller's environment; `register_worker` reads it from a file."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    monkeypatch.delenv("LLAVA_SECRET", raising=False)
    with (
        program(MODULE, "--port", str(port), folder=tmp_path, LLAVA_SECRET="s3cret"),
        worker_process("http://127.0.0.1:9", "a", tmp_path) as worker,
    ):
        wait_until(lists(controller))
        name = f"http://127.0.0.1:{worker.args[-2]}"
        wait_until(lambda: httpx_get_ok(f"{name}/health"))
        command = [sys.executable, "-m", "llava.serve.register_worker", "--controller", controller, "--worker", name]
        run = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": False}
        refused = subprocess.run(command, **run)
        assert refused.returncode == 1 and "shared secret" in refused.stderr
        assert models(controller) == []
        taken = subprocess.run([*command, "--secret-file", str(secret)], **run)
        assert (taken.returncode, taken.stdout) == (0, "")
        assert models(controller) == ["a"]
        assert "s3cret" not in (tmp_path / "controller.log").read_text()


def httpx_get_ok(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def test_openai_client_through_the_controller(controller: str, port: int, tmp_path: Path) -> None:
    """The real client, a real controller, a real worker with a tiny model."""
    import openai

    vectors, worker_port = VECTORS / "llava", str(free_port())
    name, address = "llava-v1-tiny-mlp2x", f"http://127.0.0.1:{worker_port}"
    (tmp_path / "assets").symlink_to(vectors / "assets")  # the checkpoint names its tower by a relative path
    flags = ("--port", worker_port, "--controller", controller, "--worker", address, "--device", "cpu")
    model = ("--model-path", str(vectors / "checkpoints" / name), "--cache-gb", "0.1")
    with (
        program(MODULE, "--port", str(port), folder=tmp_path),
        program("llava.serve.model_worker", *flags, *model, folder=tmp_path),
    ):
        wait_until(lists(controller, name), 120)
        client = openai.OpenAI(base_url=f"{controller}/v1", api_key="none")
        assert [one.id for one in client.models.list()] == [name]
        image = base64.b64encode((vectors / "assets/images/img0.png").read_bytes()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": "Describe the striped cat in detail."},
        ]
        request = {"model": name, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
        whole = client.chat.completions.create(**request)
        assert whole.choices[0].message.content and whole.usage.completion_tokens == 8
        chunks = client.chat.completions.create(**request, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="no worker serves the model 'nope'"):
            client.chat.completions.create(**{**request, "model": "nope"})


def test_interrupted_controller_ends_well(controller: str, port: int, tmp_path: Path) -> None:
    with program(MODULE, "--port", str(port), folder=tmp_path) as process:
        wait_until(lists(controller))
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert "Traceback" not in (tmp_path / f"{MODULE}.out").read_text()


def test_taken_port(controller: str, port: int, tmp_path: Path) -> None:
    with program(MODULE, "--port", str(port), folder=tmp_path):
        wait_until(lists(controller))
        second = subprocess.run(
            [sys.executable, "-m", MODULE, "--port", str(port)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    assert f"--port {port} cannot be used" in second.stderr and "Traceback" not in second.stderr
