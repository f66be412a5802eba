"""Hammering: requests made from the schema, and thousands of mutated ones, leave controller and worker as they were.

Nothing but a deliberate 503 may be a 5xx; no thread may die, no slot stay taken; a good request must still work.
"""

import base64
import copy
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from llava.serve.control.routes import create_app as create_controller_app
from llava.serve.control.worker_client import Timeouts
from llava.serve.controller import Controller
from llava.serve.image_limits import ImageLimits
from llava.serve.model_worker import ModelWorker
from llava.serve.worker.app import create_worker_app
from llava.serve.worker.options import ServingOptions
from tests.conftest import VECTORS
from tests.support.serving import Counting, open_model_worker, serving, serving_model, wait_until

pytestmark = pytest.mark.e2e

LLAVA = VECTORS / "llava"
MODEL = "llava-v1-tiny-mlp2x"
NUM_MUTATED = 2400
SENDERS = 4
HUGE_BODY = 2 * 2**20
FILE = base64.b64encode((LLAVA / "assets/images/img0.png").read_bytes()).decode()
GOOD = {"model": MODEL, "prompt": "USER: <image>\nHello ASSISTANT:", "images": [FILE], "temperature": 0, "top_p": 0.7,
        "max_new_tokens": 4, "stop": "</s>"}  # fmt: skip
PICTURE_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{FILE}"}}
MESSAGE = {"role": "user", "content": [{"type": "text", "text": "Hello"}, PICTURE_PART]}
CHAT = {"model": MODEL, "max_tokens": 4, "messages": [MESSAGE]}
PATHS = [
    *[("/worker_generate_stream", GOOD)] * 5, ("/v1/chat/completions", CHAT),
    ("/worker_visual_anchors", {"image": FILE}),
]  # fmt: skip
STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
REGISTRATION = {"worker_name": "http://localhost:1", "check_heart_beat": True, "worker_status": STATUS}
CONTROLLER_PATHS = [
    *[("/register_worker", REGISTRATION)] * 3, ("/receive_heart_beat", {"worker_name": "w", "queue_length": 1}),
    ("/get_worker_address", {"model": "m"}), ("/worker_generate_stream", {"model": "m", "prompt": "p"}),
    ("/v1/chat/completions", {"model": "m", "messages": []}), ("/worker_get_status", {}), ("/list_models", {}),
]  # fmt: skip
ODD_VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.5, 1e308, "", "0", "-1", "nan", "inf",
    "1e999", "\0", "\ud800", "<image>", "<image>" * 50, "<im<image>age>", "</s><s>[INST]", "🙂" * 20, "a" * 5000,
    "../../etc/passwd", "http://127.0.0.1:1/", "http://a@b", "http://[::1", "file:///etc/passwd",
    [], {}, [[]], [None], [1], [""], [FILE], [FILE] * 9, [FILE[:40]],
    ["AAAA"], {"a": []}, [[[[[[[[[[]]]]]]]]]], "__class__", "${jndi:ldap://x}", "%s%s%n",
]  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> ModelWorker:
    return open_model_worker(MODEL, options=ServingOptions(limits=ImageLimits(max_images=4, max_pixels=10**6)))


@pytest.fixture(scope="module")
def worker_address(worker: ModelWorker) -> Iterator[str]:
    with serving_model(worker, max_body_bytes=HUGE_BODY) as address:
        yield address


@pytest.fixture(scope="module")
def controller_address(worker_address: str) -> Iterator[str]:
    controller = Controller("shortest_queue")
    with serving(create_controller_app(controller)) as address:
        status = {"model_names": [MODEL], "speed": 1, "queue_length": 0}
        controller.register_worker(worker_address, False, status)
        yield address


def frames_of(response: requests.Response) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in response.content.split(b"\0") if frame]


def ask(address: str) -> list[dict[str, Any]]:
    return frames_of(requests.post(f"{address}/worker_generate_stream", json=GOOD, timeout=60))


def assert_sound(worker: ModelWorker, address: str, expected: list[dict[str, Any]]) -> None:
    """Everything is as before."""
    engine = worker.served.engine
    wait_until(
        lambda: engine.num_active == engine.num_queued == engine.num_slots_used == worker.get_queue_length() == 0
    )
    assert engine.is_alive
    assert ask(address) == expected
    assert expected[-1]["error_code"] == 0
    assert requests.get(f"{address}/health", timeout=60).status_code == 200


def unexpected(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Logged exceptions: they are answered, but they are faults."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info]


def call_with_many(operation: Any, mode: schemathesis.GenerationMode, statuses: Counter[int]) -> None:
    """Requests that the schema allows, or (negative) does not."""

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(mode))
    def call(case: schemathesis.Case) -> None:
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        assert response.status_code < 500 or response.status_code == 503, (operation.label, response.text[:300])

    call()


@pytest.mark.parametrize("which", ["controller", "worker"])
def test_requests_from_the_schema(
    which: str, worker: ModelWorker, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    address = request.getfixturevalue(f"{which}_address")
    expected = ask(address)
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses: Counter[int] = Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 6
    for operation in operations:
        call_with_many(operation, schemathesis.GenerationMode.POSITIVE, statuses)
        if len(operation.body):  # without a body there is nothing to get wrong
            call_with_many(operation, schemathesis.GenerationMode.NEGATIVE, statuses)
    assert statuses[200] > 20
    assert sum(statuses.values()) > 200
    assert unexpected(caplog) == []
    assert_sound(worker, request.getfixturevalue("worker_address"), expected)


class Mutator:
    """Requests that went wrong in one or several ways."""

    def __init__(self, seed: int, paths: list[tuple[str, Any]] = PATHS) -> None:
        self.random = random.Random(seed)
        self.paths = paths

    def body(self) -> tuple[str, bytes]:
        """A path and what is sent there."""
        path, good = self.random.choice(self.paths)
        changed = json.loads(json.dumps(good))
        for _ in range(self.random.randint(0, 3)):
            self.change(changed)
        raw = json.dumps(changed).encode()
        return path, self.damage(raw) if self.random.random() < 0.3 else raw

    def change(self, tree: Any) -> None:
        """One value somewhere becomes another, is left out, or comes twice."""
        place = tree
        while isinstance(place, dict | list) and place and self.random.random() < 0.6:
            key = self.random.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key]:
                break
            place = place[key]
        if isinstance(place, dict):
            keys = [*place, "seed", "top_k", "num_visual_tokens", "details", "n", "stream", "unknown"]
            key = self.random.choice(keys)
            if self.random.random() < 0.2:
                place.pop(key, None)
            elif isinstance(place.get(key), str) and self.random.random() < 0.3:
                place[key] = self.damaged_text(place[key])
            else:
                place[key] = copy.deepcopy(self.random.choice(ODD_VALUES))
        elif isinstance(place, list):
            if place and isinstance(place[0], str) and self.random.random() < 0.6:
                place[0] = self.damaged_text(place[0])
            else:
                place.append(copy.deepcopy(self.random.choice(ODD_VALUES)))

    def damaged_text(self, text: str) -> str:
        """A base64 image whose file is damaged, or a text with something in the middle."""
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            cut = self.random.randint(0, len(text))
            return f"{text[:cut]}{self.random.choice(['<image>', chr(0), '</s>', ' '])}{text[cut:]}"
        return base64.b64encode(self.damage(data)).decode()

    def damage(self, data: bytes) -> bytes:
        """Bytes flipped, cut out, doubled, or put in."""
        changed = bytearray(data)
        for _ in range(self.random.randint(1, 6)):
            place = self.random.randrange(len(changed) or 1)
            kind = self.random.randrange(4)
            if kind == 0 and changed:
                changed[place % len(changed)] = self.random.randrange(256)
            elif kind == 1:
                del changed[place : place + self.random.randint(1, 40)]
            elif kind == 2:
                changed[place:place] = changed[place : place + 40]
            else:
                changed[place:place] = self.random.randbytes(4)
        return bytes(changed)


def send(address: str, seed: int) -> tuple[str, int | str]:
    """One mutated request; every tenth client hangs up after a moment."""
    mutator = Mutator(seed)
    path, body = mutator.body()
    hangs_up = mutator.random.random() < 0.1
    kind = mutator.random.choice(["application/json"] * 8 + ["text/plain", ""])
    headers = {"Content-Type": kind} if kind else {}
    with requests.post(address + path, data=body, headers=headers, stream=True, timeout=60) as response:
        if hangs_up:
            next(response.iter_content(1), None)
            return path, "hung up"
        content = response.content
    if path == "/worker_generate_stream" and response.status_code == 200:
        frames = [json.loads(frame) for frame in content.split(b"\0") if frame]
        assert frames, body[:300]
        assert content.endswith(b"\0")
        assert all(frame["error_code"] in (0, 1) for frame in frames)
        return path, f"200, code {frames[-1]['error_code']}"
    return path, response.status_code


def test_mutated_requests(worker: ModelWorker, worker_address: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = ask(worker_address)
    with ThreadPoolExecutor(SENDERS) as pool:
        outcomes = Counter(pool.map(lambda seed: send(worker_address, seed), range(NUM_MUTATED)))
    total = sum(outcomes.values())
    assert total == NUM_MUTATED >= 2000
    failed = {key: n for key, n in outcomes.items() if isinstance(key[1], int) and key[1] >= 500 and key[1] != 503}
    assert failed == {}
    stream = {key[1]: n for key, n in outcomes.items() if key[0] == "/worker_generate_stream"}
    assert stream["200, code 0"] > 200  # some mutations do no harm
    assert stream["200, code 1"] > 200
    assert unexpected(caplog) == []
    assert_sound(worker, worker_address, expected)


def test_mutated_requests_to_a_controller(caplog: pytest.LogCaptureFixture) -> None:
    """No failure inside it, and good requests still work afterwards."""
    state, worker = Controller("shortest_queue"), Counting()
    quick = Timeouts(connect=0.2, status=0.2, stream=0.2, reply=0.2)
    app = create_controller_app(state, timeouts=quick, max_body_bytes=100_000)
    with serving(create_worker_app(worker)) as address, serving(app) as controller, requests.Session() as session:
        for seed in range(NUM_MUTATED):
            mutator = Mutator(seed, CONTROLLER_PATHS)
            path, body = mutator.body()
            method = mutator.random.choice(["POST"] * 4 + ["GET", "PUT"])
            headers = {"X-LLaVA-Hops": mutator.random.choice(["0"] * 9 + ["9", "x"])}
            headers["Content-Type"] = mutator.random.choice(["application/json"] * 4 + ["text/plain"])
            answer = session.request(method, controller + path, data=body, headers=headers, timeout=60)
            assert answer.status_code < 500 or answer.status_code == 503, (method, path, body, answer.text)
        assert unexpected(caplog) == []
        session.post(f"{controller}/refresh_all_workers", timeout=60)
        good = {"worker_name": address, "check_heart_beat": True, "worker_status": STATUS | {"model_names": ["good"]}}
        assert session.post(f"{controller}/register_worker", json=good).status_code == 200
        answer = session.post(f"{controller}/worker_generate_stream", json={"model": "good", "prompt": "p"})
        assert [frame["error_code"] for frame in frames_of(answer)] == [0, 0, 0]
        assert session.get(f"{controller}/metrics").status_code == 200
        assert worker.get_queue_length() == 0


def test_huge_body_is_refused_unparsed(worker_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("parsed"))
    response = requests.post(
        f"{worker_address}/worker_generate_stream", data=b'{"prompt": "' + b"a" * HUGE_BODY, timeout=60
    )
    assert response.status_code == 413
