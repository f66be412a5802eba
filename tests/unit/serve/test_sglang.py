"""The SGLang worker against a stub of sglang: what it sends there, and how it frames what comes back."""

import asyncio
import base64
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from llava.program import RequestError
from llava.serve import sglang_worker, wire
from llava.serve.sglang_worker import SGLangWorker, prompt_parts
from llava.serve.worker.app import create_worker_app
from tests.conftest import VECTORS
from tests.support.serving import serving, wait_until


class State(list):
    """What an SGLang program appends to; `pieces` are then its reply."""

    def __init__(self, pieces: list[Any]) -> None:
        super().__init__()
        self.pieces = pieces
        self.closed = False

    def __iadd__(self, part: Any) -> "State":
        self.append(part)
        return self

    async def text_async_iter(self, var_name: str) -> Any:
        assert var_name == "reply"
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if piece is None:
                    await asyncio.sleep(1000)
                yield piece
        finally:
            self.closed = True


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Any:
    stub = ModuleType("sglang")
    stub.pieces, stub.states, stub.options = ["Hel", "lo", ""], [], []

    def function(program: Any) -> Any:
        def run(*args: Any, **options: Any) -> State:
            state = State(stub.pieces)
            stub.states.append(state)
            stub.options.append(options)
            program(state, *args)
            return state

        return SimpleNamespace(run=run)

    def endpoint(url: str) -> Any:
        if "dead" in url:
            raise ConnectionError("refused")
        return SimpleNamespace(url=url, model_info={"model_path": "some/where/llava-v1.5-7b"})

    stub.function = function
    stub.image = lambda image: ("image", image)
    stub.gen = lambda name, max_tokens: ("gen", name, max_tokens)
    stub.RuntimeEndpoint = endpoint
    stub.set_default_backend = lambda backend: setattr(stub, "backend", backend)
    monkeypatch.setitem(sys.modules, "sglang", stub)
    return stub


def new_worker(name: str | None = None, endpoint: str = "http://localhost:30000") -> SGLangWorker:
    return SGLangWorker("http://localhost:1", "http://localhost:2", endpoint, "abcdef", True, name, 5)


def random_image(name: str = "img0.png") -> str:
    return base64.b64encode((VECTORS / "llava/assets/images" / name).read_bytes()).decode()


def test_name_comes_from_the_server(sglang: Any) -> None:
    assert new_worker().get_status()["model_names"] == ["llava-v1.5-7b"]
    assert new_worker("mine").get_status()["model_names"] == ["mine"]
    assert sglang.backend.url == "http://localhost:30000"


def test_reply(sglang: Any) -> None:
    params = {
        "prompt": "USER: <image>\nWhat? ASSISTANT:",
        "images": [random_image()],
        "temperature": "0.5",
        "stop": "</s>",
    }
    with serving(create_worker_app(new_worker())) as address:
        answer = httpx.post(f"{address}/worker_generate_stream", json={**params, "max_new_tokens": 5000})
    texts = [params["prompt"] + reply for reply in ("Hel", "Hello", "Hello")]
    assert list(wire.read_frames([answer.content])) == [{"text": text, "error_code": 0} for text in texts]
    first, (_, image), text, generated = sglang.states[0]
    assert (first, text, generated) == ("USER:", "What? ASSISTANT:", ("gen", "reply", 1024))
    assert isinstance(image, Image.Image)
    assert sglang.options[0] == {"temperature": 0.5, "top_p": 1.0, "stream": True}


def test_failure_of_the_server_is_one_frame(sglang: Any) -> None:
    sglang.pieces = ["a", RuntimeError("server gone")]
    frames = list(new_worker().generate_stream_gate({"prompt": "p"}))
    assert frames == [wire.frame("pa"), wire.error_frame(1)]


def test_silence_is_a_failure(sglang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_worker, "SILENCE", 0.05)
    sglang.pieces = ["a", None]
    worker = new_worker()
    assert list(worker.generate_stream_gate({"prompt": "p"})) == [wire.frame("pa"), wire.error_frame(1)]
    assert sglang.states[0].closed and worker.get_queue_length() == 0


def test_hanging_up(sglang: Any) -> None:
    sglang.pieces = ["a", None]
    with serving(create_worker_app(new_worker())) as address, httpx.Client() as client:
        with client.stream("POST", f"{address}/worker_generate_stream", json={"prompt": "p"}) as reply:
            pieces = reply.iter_raw()
            next(pieces)
        wait_until(lambda: sglang.states[0].closed)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a <image>\nb", ["a", None, "b"]),
        ("a<image>b", ["a", None, "b"]),
        ("<image>\n\nb", [None, "\nb"]),
        ("a  <image> b", ["a ", None, " b"]),
        ("a <image>\n<image>\nb", ["a", None, None, "b"]),
        ("no image", ["no image"]),
    ],
)
def test_prompt_parts(prompt: str, texts: list[str | None]) -> None:
    parts = prompt_parts(prompt, [random_image()] * prompt.count("<image>"))
    assert [part if isinstance(part, str) else None for part in parts] == texts


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("no marker", [random_image()], "1 image"),
        ("<image>", [], "0 image"),
        ("<image>", None, "0 image"),
        ("<image>", "x", "a list of base64"),
        ("<image>", [1], "a list of base64"),
        ("<image>", ["bm90IGFuIGltYWdl"], "image data"),
        ("<image>" * 99, [random_image()] * 99, "at most"),
    ],
)
def test_bad_images(sglang: Any, prompt: str, images: Any, message: str) -> None:
    (frame,) = new_worker().generate_stream_gate({"prompt": prompt, "images": images, "details": True})
    received = wire.parse_frame(frame[:-1])
    assert received["error_code"] == 1 and message in received["message"]
    assert sglang.states == []


@pytest.mark.parametrize(
    "params",
    [{"temperature": "hot"}, {"top_p": 2}, {"temperature": -1}, {"temperature": float("nan")},
     {"max_new_tokens": float("inf")}, {"max_new_tokens": -1}, {"top_p": []}],
)  # fmt: skip
def test_bad_numbers(sglang: Any, params: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        list(new_worker().generate_stream({"prompt": "p", **params}))


def test_server_that_does_not_answer(sglang: Any) -> None:
    with pytest.raises(RequestError, match=r"no SGLang server answers at http://dead .*check --sgl-endpoint"):
        new_worker(endpoint="http://dead")


def test_without_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(ImportError, match="pip install sglang"):
        new_worker()


def test_program(sglang: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    argv = ["w", "--controller", "http://c", "--worker", "http://w:1", "--sgl-endpoint", "http://s", "--no-register"]
    monkeypatch.setattr("sys.argv", [*argv, "--limit-model-concurrency", "3"])
    monkeypatch.setattr(sglang_worker, "build_logger", lambda name, file: seen.update(log=file))
    monkeypatch.setattr("llava.serve.http_layer.run_server", lambda app, host, port: seen.update(port=port))
    monkeypatch.setattr("llava.serve.worker.app.create_worker_app", lambda worker, **_: seen.update(worker=worker))
    sglang_worker.main()
    worker = seen["worker"]
    assert seen["log"] == f"model_worker_{worker.worker_id}.log" and seen["port"] == 21002
    assert (worker.controller_addr, worker.worker_addr, worker.slots.limit) == ("http://c", "http://w:1", 3)
    assert worker.no_register and len(worker.worker_id) == 6
