"""The model worker against recorded conversations of the original, frame by frame.

Deviations on purpose: a stop string ends the reply, and a request without one works.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.conftest import VECTORS
from tests.support.serving import open_model_worker, serving_model, wait_until

LLAVA = VECTORS / "llava"
TRANSCRIPT = json.loads((LLAVA / "serve/transcript.json").read_text())
EXCHANGES = {e["name"]: e for e in TRANSCRIPT if e.get("server") == "worker" and "frames" in e}
DEVIATIONS = {"worker_stop_in_the_middle", "worker_no_stop"}


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    """The address of a worker with the recorded model."""
    with serving_model(open_model_worker()) as address:
        yield address


def filled(request: dict[str, Any]) -> dict[str, Any]:
    """The request with the images' bytes in their places."""
    images = request.get("images")
    if not images:
        return request
    prefix = "<base64 of "
    return request | {
        "images": [
            base64.b64encode((LLAVA / text[len(prefix) : -1]).read_bytes()).decode()
            if text.startswith(prefix)
            else text
            for text in images
        ]
    }


def ask(worker: str, request: dict[str, Any]) -> tuple[requests.Response, list[dict[str, Any]]]:
    response = requests.post(f"{worker}/worker_generate_stream", json=request, timeout=60)
    return response, [json.loads(frame) for frame in response.content.split(b"\0") if frame]


@pytest.mark.parametrize("name", [name for name in EXCHANGES if name not in DEVIATIONS])
def test_recorded_frames(name: str, worker: str) -> None:
    recorded = EXCHANGES[name]
    response, frames = ask(worker, filled(recorded["request"]))
    assert response.status_code == recorded["status"]
    assert frames == recorded["frames"]
    assert response.content.endswith(b"\0") == recorded["ends_with_nul"]
    assert response.content.startswith(recorded["first_frame_raw"].replace("\\0", "\0").encode())
    assert "content-type" not in response.headers


def test_stop_string_ends_the_reply(worker: str) -> None:
    recorded = EXCHANGES["worker_stop_in_the_middle"]
    _, frames = ask(worker, filled(recorded["request"]))
    assert frames[:3] == recorded["frames"][:3]
    assert frames[-1] == recorded["frames"][3]  # the text up to the stop string; the original went on after it
    assert len(frames) < recorded["frame_count"]


def test_request_without_a_stop_string(worker: str) -> None:
    request = filled(EXCHANGES["worker_no_stop"]["request"])
    assert "stop" not in request
    expected = ask(worker, request | {"stop": "</s>"})[1]
    assert expected[-1]["error_code"] == 0
    assert ask(worker, request)[1] == ask(worker, request | {"stop": None})[1] == expected


def test_status(worker: str) -> None:
    recorded = next(e for e in TRANSCRIPT if e["name"] == "worker_status")
    response = requests.post(f"{worker}/worker_get_status", timeout=60)
    assert response.json() == recorded["response"]
    assert response.headers["content-length"] == recorded["headers"]["content-length"]


def test_details_on_request(worker: str) -> None:
    """Fields that upstream does not have: only for clients that request them."""
    request = filled(EXCHANGES["worker_image"]["request"])
    usage = ask(worker, request | {"details": True})[1][-1]["usage"]
    assert usage.pop("time_to_first_token") > 0
    assert usage == {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": 16, "visual_tokens": 16}
    frames = ask(worker, request | {"images": [], "details": True})[1]
    assert [frame["error_code"] for frame in frames] == [1]
    assert "does not match number of <image>" in frames[0]["message"]


def test_synchronous_names(caplog: pytest.LogCaptureFixture) -> None:
    """`generate_stream` and `generate_stream_gate` without a server; leaving early frees the slot and logs nothing."""
    one = open_model_worker("llava-v1-tiny-mlp2x/")
    recorded = EXCHANGES["worker_text"]
    for stream in (one.generate_stream, one.generate_stream_gate):
        frames = [json.loads(frame[:-1]) for frame in stream(recorded["request"])]
        assert frames == recorded["frames"]
    stream = one.generate_stream({"prompt": "USER: hi ASSISTANT:", "max_new_tokens": 400, "temperature": 1.0})
    next(stream)
    stream.close()
    wait_until(lambda: one.served.engine.num_active == one.get_queue_length() == 0)
    one.stop()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
