"""The OpenAI-compatible API, asked by OpenAI's own client, over HTTP."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import requests
from pydantic import BaseModel

from llava.serve.image_limits import ImageLimits
from llava.serve.model_worker import ModelWorker
from llava.serve.worker import model_app
from llava.serve.worker.options import ServingOptions
from tests.conftest import VECTORS
from tests.support.engines import random_image
from tests.support.serving import open_model_worker, serving_model, wait_until

LLAVA = VECTORS / "llava"
MODEL = "llava-v1-tiny-mlp2x"
QUESTION = [{"role": "user", "content": "What color is the broken cat?"}]


def data_uri(number: int = 1, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    random_image(number).save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def shown(*urls: str, text: str = "Describe the striped cat in detail.") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def new_worker() -> ModelWorker:
    """Two replies at once, two more may wait; replies end at their limit only."""
    limits = ImageLimits(max_images=2, max_pixels=100_000)
    worker = open_model_worker(MODEL, options=ServingOptions(max_rows=2, max_waiting=2, limits=limits))
    worker.served.engine._end_tokens = frozenset()
    return worker


@pytest.fixture(scope="module")
def worker() -> ModelWorker:
    return new_worker()


@pytest.fixture(scope="module")
def address(worker: ModelWorker) -> Iterator[str]:
    with serving_model(worker) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, messages: list[dict[str, Any]] = QUESTION, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 12} | options
    )


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_whole_and_streamed_replies_are_one(client: openai.OpenAI) -> None:
    whole = ask(client, shown(data_uri()))
    chunks = list(ask(client, shown(data_uri()), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == whole.choices[0].message.content != ""
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3  # it really comes in pieces


def test_usage_counts_visual_tokens(client: openai.OpenAI) -> None:
    one, two = ask(client, shown(data_uri(1))).usage, ask(client, shown(data_uri(1), data_uri(2))).usage
    assert one.prompt_tokens_details.image_tokens == 16
    assert two.prompt_tokens_details.image_tokens == 32
    assert one.completion_tokens == 12
    assert one.total_tokens == one.prompt_tokens + 12
    text = ask(client).usage
    assert text.prompt_tokens_details.image_tokens == 0


def test_same_as_the_wire(client: openai.OpenAI, address: str) -> None:
    """One model, two doors: the prompt is that of the template which the model's name asks for."""
    recorded = {e["name"]: e for e in json.loads((LLAVA / "serve/transcript.json").read_text())}["worker_image"]
    file = base64.b64encode((LLAVA / "assets/images/img0.png").read_bytes()).decode()
    prompt = recorded["request"]["prompt"].replace("user", "human")  # llava_v1's system text
    response = requests.post(
        f"{address}/worker_generate_stream",
        json=recorded["request"] | {"images": [file], "prompt": prompt, "max_new_tokens": 12},
        timeout=60,
    )
    text = json.loads(response.content.split(b"\0")[-2])["text"]
    reply = ask(client, shown(f"data:image/png;base64,{file}"))
    assert reply.choices[0].message.content == text[len(prompt) :].strip()


def test_seed_n_and_stop(client: openai.OpenAI) -> None:
    options = {"temperature": 1.0, "seed": 7, "n": 3}
    first = [choice.message.content for choice in ask(client, **options).choices]
    assert first == [choice.message.content for choice in ask(client, **options).choices]
    assert len(set(first)) == 3
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(client, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [streamed[i].strip() for i in range(3)] == first
    whole = ask(client).choices[0].message.content
    stop = whole[len(whole) // 2 :][:4]
    cut = ask(client, stop=[stop, "never"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)].strip()
    assert cut.choices[0].finish_reason == "stop"
    streamed_cut = "".join(c.choices[0].delta.content or "" for c in ask(client, stop=stop, stream=True))
    assert streamed_cut.strip() == cut.choices[0].message.content


def test_several_turns_and_a_system_text(client: openai.OpenAI) -> None:
    talk = [
        {"role": "system", "content": "Answer shortly."},
        *shown(data_uri()),
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [{"type": "text", "text": "And its color?"}]},
    ]
    assert ask(client, talk).choices[0].message.content
    assert ask(client, talk[1:]).usage.prompt_tokens > ask(client, talk).usage.prompt_tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 9}, "less than or equal to 8"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"temperature": 3}, "less than or equal to 2"),
        ({"top_p": -1}, "greater than or equal to 0"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"stop": ["a"] * 5}, "at most 4"),
        ({"logprobs": True}, "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"logit_bias": {"7": -100}}, "logit_bias is not supported"),
        ({"functions": [{"name": "f"}]}, "functions is not supported"),
        ({"modalities": ["text", "audio"]}, "modalities is not supported"),
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, "take turns"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "Red"}]}, "last message"),
        ({"messages": [shown(data_uri())[0] | {"role": "system"}, *QUESTION]}, "only the user"),
        ({"messages": [*QUESTION, shown(data_uri())[0] | {"role": "assistant"}, *QUESTION]}, "only the user"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty"),
        ({"messages": [{"role": "user", "content": "<image>"}]}, "empty"),
        ({"messages": [{"role": "robot", "content": "Hello"}]}, "role"),
        ({"messages": shown(*[data_uri()] * 3)}, "at most 2"),
        ({"messages": shown("http://localhost/cat.png")}, "fetches no web addresses"),
        ({"messages": shown("file:///etc/passwd")}, "fetches no web addresses"),
        ({"messages": shown("data:text/html;base64,AAAA")}, "data: URI must be"),
        ({"messages": shown("data:image/png;base64,????")}, "not valid base64"),
        ({"messages": shown("data:image/png;base64,AAAA")}, "JPEG, PNG, WEBP"),
        ({"messages": shown(data_uri(kind="GIF"))}, "JPEG, PNG, WEBP"),
        ({"num_visual_tokens": 4, "messages": shown(data_uri())}, "fixed number of visual tokens"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "context"),
    ],
)
def test_errors_have_openais_shape(change: dict[str, Any], message: str, client: openai.OpenAI, address: str) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 4} | change
    response = requests.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            **{k: v for k, v in body.items() if k != "num_visual_tokens"},
            extra_body={k: v for k, v in body.items() if k == "num_visual_tokens"},
        )


def test_legal_settings_that_change_nothing(client: openai.OpenAI) -> None:
    plain = ask(client).choices[0].message.content
    options = {
        "response_format": {"type": "text"}, "logit_bias": {}, "modalities": ["text"], "presence_penalty": 0,
        "tools": [], "user": "somebody", "store": False, "metadata": {"a": "b"}, "stop": None, "n": None,
    }  # fmt: skip
    assert ask(client, **options).choices[0].message.content == plain


def test_structured_replies_are_refused(client: openai.OpenAI) -> None:
    """Silently ignored, they would fail in the client, as if the model had answered wrongly."""

    class Cat(BaseModel):
        color: str

    with pytest.raises(openai.BadRequestError, match="response_format is not supported"):
        client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Cat)


def test_marker_in_a_text_is_left_out(client: openai.OpenAI) -> None:
    """Otherwise it would claim an image."""
    text = QUESTION[0]["content"]
    plain, marked = ask(client), ask(client, [{"role": "user", "content": f"<image>{text}<im<image>age>"}])
    assert plain.usage.prompt_tokens == marked.usage.prompt_tokens
    two = ask(client, shown(data_uri(), text="<image> Describe <image>"))
    assert two.usage.prompt_tokens_details.image_tokens == 16


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4")
    assert caught.value.code == "model_not_found"


def test_key() -> None:
    with serving_model(new_worker(), api_key="right") as address:
        with pytest.raises(openai.AuthenticationError):
            ask(openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0))
        assert requests.get(f"{address}/v1/models", timeout=60).status_code == 401
        assert requests.get(f"{address}/health", timeout=60).status_code == 200


def test_health_is_that_of_the_engine() -> None:
    worker = new_worker()
    with serving_model(worker) as address:
        assert requests.get(f"{address}/health", timeout=60).status_code == 200
        worker.served.engine.close()
        assert requests.get(f"{address}/health", timeout=60).status_code == 503


def test_busy_is_503_and_hanging_up_frees_the_place(client: openai.OpenAI, worker: ModelWorker) -> None:
    engine = worker.served.engine
    running = [ask(client, stream=True, max_tokens=400) for _ in range(2)]
    wait_until(lambda: engine.num_active == 2)
    waiting = [threading.Thread(target=ask, args=(client,), daemon=True) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: engine.num_queued == 2)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, stream=True)
    assert (caught.value.status_code, caught.value.code) == (503, "server_busy")
    for stream in running:
        stream.close()
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()
    wait_until(lambda: engine.num_active == engine.num_slots_used == worker.get_queue_length() == 0)


@pytest.mark.parametrize("streamed", [True, False])
def test_choices_end_when_one_of_them_is_refused(streamed: bool, client: openai.OpenAI, worker: ModelWorker) -> None:
    """Four find a place, the fifth is refused, and the four are cancelled."""
    engine = worker.served.engine
    whole = engine.metrics.requests.labels("length")._value.get
    before = whole()
    with pytest.raises(openai.InternalServerError, match="busy"):
        ask(client, n=8, stream=streamed, max_tokens=100)
    wait_until(lambda: engine.num_active == engine.num_queued == worker.get_queue_length() == 0)
    assert whole() == before


@pytest.mark.parametrize("streamed", [True, False])
def test_client_that_hangs_up_before_the_first_token_is_forgotten(
    streamed: bool, address: str, worker: ModelWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, go_on = worker.served.engine, threading.Event()
    admit = engine._admit
    monkeypatch.setattr(engine, "_admit", lambda: go_on.wait(0.1) and admit())
    with socket.create_connection(urlsplit(address).netloc.split(":")) as connection:
        body = json.dumps({"model": MODEL, "messages": QUESTION, "max_tokens": 400, "stream": streamed}).encode()
        head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
        connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}\r\n\r\n"]).encode() + body)
        wait_until(lambda: engine.num_queued == 1)
    wait_until(lambda: engine.num_queued == worker.get_queue_length() == 0)
    go_on.set()


def test_anchors_details_and_metrics(address: str) -> None:
    details = requests.post(f"{address}/worker_get_details", timeout=60).json()
    assert (details["connector"], details["num_visual_tokens"], details["max_images"]) == ("mlp2x_gelu", 16, 2)
    file = data_uri().split(",")[1]
    drawn = requests.post(f"{address}/worker_visual_anchors", json={"image": file, "num_visual_tokens": 9}, timeout=60)
    assert drawn.json()["caption"] == "8 visual anchors of 16 patches"
    assert base64.b64decode(drawn.json()["image"]).startswith(b"\x89PNG")
    for body in ({"image": "AAAA"}, {"image": file, "num_visual_tokens": 2000}):
        refused = requests.post(f"{address}/worker_visual_anchors", json=body, timeout=60)
        assert refused.status_code == 400
        assert refused.json()["message"]
    metrics = requests.get(f"{address}/metrics", timeout=60)
    assert "llava_generated_tokens_total" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")


def test_one_image_is_drawn_at_a_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, counts = threading.Lock(), {"now": 0, "most": 0}

    def draw(*_: Any) -> dict[str, str]:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts.values())
        time.sleep(0.02)
        with lock:
            counts["now"] -= 1
        return {"image": "", "caption": ""}

    monkeypatch.setattr(model_app, "_draw", draw)
    statuses: list[int] = []

    def post() -> None:
        statuses.append(requests.post(f"{address}/worker_visual_anchors", json={"image": ""}, timeout=60).status_code)

    threads = [threading.Thread(target=post) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["most"] == 1
    assert set(statuses) <= {200, 400}  # too many wait


def test_first_request_after_all_this_still_works(client: openai.OpenAI, worker: ModelWorker, tmp_path: Path) -> None:
    assert ask(client, shown(data_uri())).choices[0].message.content
    assert worker.served.engine.num_slots_used == 0
