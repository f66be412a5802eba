"""Real processes: a controller, model workers and clients. Waits for conditions, never for time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from llava.serve.http_client import stream_request
from tests.conftest import REPOSITORY, VECTORS
from tests.support.serving import free_port, program, wait_until

pytestmark = pytest.mark.e2e

MODEL = "llava-v1-tiny-mlp2x"
STARTING = 120  # seconds that a process may take to be there
TRANSCRIPT = {e["name"]: e for e in json.loads((VECTORS / "llava/serve/transcript.json").read_text())}


@contextmanager
def worker(controller: str, folder: Path, name: str = MODEL, *flags: str, **environment: str) -> Iterator[Any]:
    """A worker process with the recorded model; yields the process and its address. Started in the vectors' folder."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    model = str(VECTORS / "llava/checkpoints" / MODEL)
    arguments = ["--model-path", model, "--model-name", name, "--device", "cpu", "--controller", controller,
                 "--worker", address, "--port", str(port), "--host", "127.0.0.1", *flags]  # fmt: skip
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "LLAVA_LOGDIR": str(folder), **environment}
    with (folder / f"worker-{name}.out").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llava.serve.model_worker", *arguments],
            cwd=VECTORS / "llava", env=variables, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            yield process, address
        finally:
            process.kill()
            process.wait()


def is_healthy(address: str) -> bool:
    return requests.get(f"{address}/health", timeout=5).status_code == 200


def models(controller: str) -> list[str]:
    return sorted(requests.post(f"{controller}/list_models", timeout=5).json()["models"])


def frames(address: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    return list(stream_request(address, request))


def test_whole_deployment(tmp_path: Path) -> None:
    """Two workers behind one controller; one is killed, the controller is restarted, and both are survived."""
    port = free_port()
    controller = f"http://127.0.0.1:{port}"
    flags = ["--host", "127.0.0.1", "--port", str(port)]
    recorded = TRANSCRIPT["controller_text"]
    with ExitStack() as stack:
        first_controller = stack.enter_context(program("llava.serve.controller", *flags, folder=tmp_path))
        wait_until(lambda: is_healthy(controller), STARTING)
        _, address = stack.enter_context(worker(controller, tmp_path))
        other, _ = stack.enter_context(worker(controller, tmp_path, "llava-other"))
        wait_until(lambda: models(controller) == sorted([MODEL, "llava-other"]), STARTING)

        # Straight and through the controller: the recorded reply.
        for at in (address, controller):
            assert frames(at, recorded["request"]) == recorded["frames"]

        # OpenAI's client through the controller, which sends it to the worker of the model.
        client = openai.OpenAI(base_url=f"{controller}/v1", api_key="none", max_retries=0)
        assert sorted(model.id for model in client.models.list()) == sorted([MODEL, "llava-other"])
        question = [{"role": "user", "content": "What color is the broken cat?"}]
        options = {"model": "llava-other", "messages": question, "temperature": 0, "max_tokens": 8}
        whole = client.chat.completions.create(**options).choices[0].message.content
        pieces = client.chat.completions.create(**options, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces).strip() == whole

        # Upstream's command line test.
        result = subprocess.run(
            [sys.executable, "-m", "llava.serve.test_message", "--controller", controller, "--model-name", MODEL,
             "--message", "Describe the heavy horse in detail.", "--max-new-tokens", "4"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert f"worker_addr: {address}" in result.stdout
        assert MODEL in result.stdout.splitlines()[0]

        # Killed in the middle of a reply: one clear error for who waits for it.
        text = {"model": "llava-other", "prompt": "USER: Hello ASSISTANT:", "temperature": 1.0, "max_new_tokens": 400}
        stream = stream_request(controller, text | {"details": True})
        assert next(stream)["error_code"] == 0
        other.send_signal(signal.SIGSTOP)  # so that the reply cannot end before the kill
        other.kill()
        rest = list(stream)
        assert [frame["error_code"] for frame in rest if frame["error_code"]] == [3]
        assert rest[-1]["error_code"] == 3
        assert "try again" in rest[-1]["message"]
        assert frames(controller, recorded["request"]) == recorded["frames"]

        # A new controller has no workers; the next heart beat registers this one.
        first_controller.kill()
        first_controller.wait()
        stack.enter_context(program("llava.serve.controller", *flags, folder=tmp_path))
        wait_until(lambda: is_healthy(controller), STARTING)
        frames(address, recorded["request"])  # a request brings a heart beat
        wait_until(lambda: models(controller) == [MODEL], 30)

    logs = list(tmp_path.glob("model_worker_*.log"))
    assert len(logs) == 2
    assert all(len(log.name) == len("model_worker_abcdef.log") and not log.stat().st_mode & 0o007 for log in logs)


def test_secret_and_silent_worker(tmp_path: Path) -> None:
    """Only workers with the secret can register; with --no-register, none is contacted."""
    port = free_port()
    controller = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(
            program("llava.serve.controller", "--port", str(port), folder=tmp_path, LLAVA_SECRET="open sesame")
        )
        _, knowing = stack.enter_context(worker(controller, tmp_path, "llava-a", LLAVA_SECRET="open sesame"))
        _, ignorant = stack.enter_context(worker(controller, tmp_path, "llava-b", LLAVA_SECRET="wrong"))
        _, silent = stack.enter_context(
            worker(controller, tmp_path, "llava-c", "--no-register", LLAVA_SECRET="open sesame")
        )
        for address in (controller, knowing, ignorant, silent):
            wait_until(lambda address=address: is_healthy(address), STARTING)
        wait_until(lambda: models(controller) == ["llava-a"], STARTING)
        wait_until(lambda: "requires a shared secret" in (tmp_path / "worker-llava-b.out").read_text(), STARTING)
        frames(silent, TRANSCRIPT["controller_text"]["request"])
        assert models(controller) == ["llava-a"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-path", "/nowhere/llava"], "/nowhere/llava"),
        (["--limit-model-concurrency", "0"], "must be 1 or more"),
        (["--prefill-chunk", "-5"], "--prefill-chunk must be more than 0"),
        (["--cache-gb", "nan"], "--cache-gb must be more than 0"),
        (["--picture-cache-gb", "-1"], "--picture-cache-gb must be 0 or more"),
        (["--port", "99999"], "99999"),
    ],
)
def test_worker_that_cannot_start(flags: list[str], message: str, tmp_path: Path) -> None:
    with worker("http://127.0.0.1:9", tmp_path, MODEL, "--no-register", *flags) as (process, _):
        assert process.wait(STARTING) == 1
    output = (tmp_path / f"worker-{MODEL}.out").read_text()
    assert "Traceback" not in output
    assert message in [line for line in output.splitlines() if "error:" in line][-1]
