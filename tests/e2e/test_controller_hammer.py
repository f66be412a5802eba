"""2,000 malformed requests at a controller: no failure inside it, and good requests still work afterwards."""

import json
import random
from typing import Any

import httpx
import pytest

from llava.serve import wire
from llava.serve.control.routes import create_app
from llava.serve.control.worker_client import Timeouts
from llava.serve.controller import Controller
from llava.serve.worker.app import create_worker_app
from tests.support.serving import Counting, serving

pytestmark = pytest.mark.e2e

ODD = [None, True, False, 0, -1, 1.5, 10**400, 1e308, "", "m", "\ud800", "\x00", "x" * 5000, [], [[]], {}, {"a": 1},
       "http://localhost:1", "http://a@b", "file:///etc/passwd", "http://[::1", "<image>", "../..", "NaN"]  # fmt: skip
KEYS = ["worker_name", "check_heart_beat", "worker_status", "queue_length", "model", "prompt", "model_names", "speed",
        "stream", "messages", "images"]  # fmt: skip
PATHS = ["/register_worker", "/receive_heart_beat", "/get_worker_address", "/list_models", "/worker_generate_stream",
         "/worker_get_status", "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/nowhere"]  # fmt: skip
GOOD_STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
GOOD = {"worker_name": "http://localhost:1", "check_heart_beat": True, "worker_status": GOOD_STATUS,
        "queue_length": 1, "model": "m", "prompt": "p", "messages": []}  # fmt: skip
DELIBERATE = {503}  # a worker that is gone, a circle of controllers


def odd_object(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    def value() -> Any:
        return odd_object(rng, depth + 1) if depth < 2 and rng.random() < 0.2 else rng.choice(ODD)

    return {key: value() for key in rng.sample(KEYS, rng.randint(0, len(KEYS)))}


def body_of(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randint(0, 200))
    if kind < 0.15:
        return b"[" * 5000
    if kind < 0.6:  # good but for a field or two
        body = json.dumps(GOOD | {key: rng.choice(ODD) for key in rng.sample(KEYS, rng.randint(0, 2))}).encode()
    else:
        body = json.dumps(odd_object(rng) if kind < 0.9 else rng.choice(ODD)).encode()
    if kind < 0.3:  # damaged in one place
        place = rng.randrange(len(body) + 1)
        body = body[:place] + rng.randbytes(1) + body[place + 1 :]
    return body


def test_malformed_requests(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(5)
    state, worker = Controller("shortest_queue"), Counting()
    app = create_app(state, timeouts=Timeouts(connect=0.2, status=0.2, stream=0.2, reply=0.2), max_body_bytes=100_000)
    with serving(create_worker_app(worker)) as address, serving(app) as controller, httpx.Client() as client:
        for _ in range(2000):
            method = rng.choice(["POST", "POST", "POST", "POST", "GET", "PUT"])
            headers = {"X-LLaVA-Hops": rng.choice(["0", "9", "x"])} if rng.random() < 0.1 else {}
            headers["Content-Type"] = rng.choice(["application/json"] * 4 + ["text/plain"])
            path, body = rng.choice(PATHS), body_of(rng)
            answer = client.request(method, controller + path, content=body, headers=headers)
            assert answer.status_code < 500 or answer.status_code in DELIBERATE, (method, path, body, answer.text)
        assert not [record for record in caplog.records if record.exc_info]

        client.post(f"{controller}/refresh_all_workers", timeout=30)
        status = {"model_names": ["good"], "speed": 1, "queue_length": 0}
        registration = {"worker_name": address, "check_heart_beat": True, "worker_status": status}
        assert client.post(f"{controller}/register_worker", json=registration).status_code == 200
        answer = client.post(f"{controller}/worker_generate_stream", json={"model": "good", "prompt": "p"})
        assert [frame["error_code"] for frame in wire.read_frames([answer.content])] == [0, 0, 0]
        assert client.get(f"{controller}/metrics").status_code == 200
        assert worker.get_queue_length() == 0
