"""Answers that come into a chat: request, stream, errors, stop, log; against doubles of controller and worker."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("httpx", reason="pip install 'llava[serve]'")

from llava.conversation import conv_templates
from llava.serve.page.answer import CURSOR, Answerer, Outcome, build_request
from llava.serve.page.chat import AFTER_ERROR, ALL_OFF, ALL_ON, Chat, Settings
from llava.serve.page.client import ModelClient, ModelDetails, sort_models
from llava.serve.page.log import ChatLog
from llava.utils import server_error_msg
from tests.support.serve_doubles import ANSWER, Behaviour, ControllerDouble, WorkerDouble, deployment, elastic_details

NO_ANSWER = "The worker ended the connection without an answer."


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour(model="llava-v1.5-7b")


@pytest.fixture
def running(behaviour: Behaviour) -> Iterator[tuple[ControllerDouble, WorkerDouble]]:
    with deployment(behaviour) as (controller, workers):
        yield controller, workers[0]


@pytest.fixture
def answerer(running: tuple[ControllerDouble, WorkerDouble], tmp_path: Path) -> Answerer:
    return Answerer(ModelClient(running[0].url), ChatLog(str(tmp_path)))


def answer(
    answerer: Answerer,
    chat: Chat,
    model: str | None = "llava-v1.5-7b",
    settings: Settings | None = None,
    at_each: Callable[[str], None] = lambda text: None,
) -> list[Any]:
    """Buttons after every step; `at_each` sees the answer as it stands then."""

    async def run() -> list[Any]:
        steps = []
        async for buttons in answerer.http_bot(chat, model, settings or Settings(), "10.0.0.1"):
            steps.append(buttons)
            at_each(chat.conversation.messages[-1][1] if chat.conversation.messages else "")
        return steps

    return asyncio.run(run())


def asking(text: str, **options: Any) -> Chat:
    chat = Chat()
    chat.add_text(text, **options)
    return chat


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*-conv.json")) for line in path.open()]


def test_a_whole_exchange(
    answerer: Answerer, running: tuple[ControllerDouble, WorkerDouble], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.new("RGB", (30, 20), "red")
    chat = asking("What is it?", images=[image])
    seen: list[str] = []
    with caplog.at_level(logging.INFO):
        steps = answer(answerer, chat, at_each=seen.append)
    assert steps[0] == ALL_OFF and set(steps[:-1]) == {ALL_OFF} and steps[-1] == ALL_ON
    assert seen[0] == CURSOR and all(text.endswith(CURSOR) for text in seen[:-1]) and seen[-1] == ANSWER
    assert chat.conversation.version == "v1" and not chat.is_running
    assert chat.figures[1].completion_tokens == 10 and chat.figures[1].visual_tokens is None

    (request,) = running[1].asked("/worker_generate_stream")
    images = request.pop("images")
    assert len(images) == 1
    assert request == {
        "model": "llava-v1.5-7b",
        "prompt": f"{conv_templates['llava_v1'].system} USER: <image>\nWhat is it? ASSISTANT:",
        "temperature": 0.2,
        "top_p": 0.7,
        "max_new_tokens": 512,
        "stop": "</s>",
        "details": True,
    }
    assert {request.headers["User-Agent"] for request in running[1].requests} == {"LLaVA Client"}
    assert images[0] not in caplog.text and "1 images" in caplog.text

    (line,) = logged(tmp_path)
    assert sorted(line) == ["finish", "images", "ip", "model", "start", "state", "tstamp", "type"]
    assert (line["type"], line["ip"], line["images"]) == ("chat", "10.0.0.1", [chat_hash(image)])
    assert line["state"]["messages"] == [["USER", "What is it?\n<image>"], ["ASSISTANT", ANSWER]]
    assert line["start"] <= line["finish"] == line["tstamp"]


def chat_hash(image: Image.Image) -> str:
    import hashlib

    return hashlib.md5(image.tobytes()).hexdigest()


def test_nothing_to_answer(answerer: Answerer) -> None:
    assert answer(answerer, Chat()) == [None]
    skipped = asking("")
    assert answer(answerer, skipped) == [None] and skipped.conversation.messages == []
    done = asking("Hello")
    answer(answerer, done)
    assert answer(answerer, done) == [None]  # there is an answer already


def test_second_turn_keeps_the_template(answerer: Answerer, running: Any) -> None:
    chat = asking("Hello")
    answer(answerer, chat)
    chat.add_text("And?")
    answer(answerer, chat, model="llava-v1.5-7b")
    prompt = running[1].asked("/worker_generate_stream")[-1]["prompt"]
    assert prompt.endswith(f"USER: Hello ASSISTANT: {ANSWER}</s>USER: And? ASSISTANT:")


def test_the_template_that_the_worker_states(answerer: Answerer, running: Any, behaviour: Behaviour) -> None:
    behaviour.details = elastic_details(conv_mode="mpt")
    chat = asking("Hello")
    answer(answerer, chat, settings=Settings(num_visual_tokens=5, max_new_tokens=9999))
    (request,) = running[1].asked("/worker_generate_stream")
    assert request["stop"] == "<|im_end|>" and request["prompt"].endswith("<|im_start|>assistant\n")
    assert request["num_visual_tokens"] == 5 and request["max_new_tokens"] == 1536
    assert chat.figures[1].first_token == 0.125


@pytest.mark.parametrize(
    ("template", "stop"), [("llava_v0", "###"), ("mpt", "<|im_end|>"), ("llava_v1", "</s>"), ("llava_llama_2", "</s>")]
)
def test_stop_string(template: str, stop: str) -> None:
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], "Hello")
    conversation.append_message(conversation.roles[1], CURSOR)
    request = build_request(conversation, "m", Settings())
    assert request["stop"] == stop and CURSOR not in request["prompt"]
    assert conversation.messages[-1][1] == CURSOR


@pytest.mark.parametrize(
    ("changes", "model", "reply", "remark"),
    [
        ({}, "unknown", server_error_msg, "No worker serves unknown."),
        ({}, None, server_error_msg, "No model is chosen."),
        ({"error": (1, None)}, "llava-v1.5-7b", f"{server_error_msg} (error_code: 1)", None),
        ({"error": (1, "too busy")}, "llava-v1.5-7b", "too busy (error_code: 1)", None),
        ({"breaks_after": 4}, "llava-v1.5-7b", server_error_msg, "The connection to the worker is broken."),
        (
            {"says_nothing": True},
            "llava-v1.5-7b",
            server_error_msg,
            "The worker ended the connection without an answer.",
        ),
    ],
)
def test_failures(
    answerer: Answerer, behaviour: Behaviour, tmp_path: Path, changes: Any, model: str, reply: str, remark: str | None
) -> None:
    behaviour.__dict__.update(changes)
    chat = asking("Hello")
    assert answer(answerer, chat, model)[-1] == AFTER_ERROR
    assert chat.conversation.messages[-1][1] == reply
    assert chat.remarks.get(1) == remark and chat.figures == {} and not chat.is_running
    # A stream without any piece is a chat, too.
    assert len(logged(tmp_path)) == (1 if "says_nothing" in changes else 0)


def test_a_fault_of_the_demo_leaves_the_visitor_free(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answerer.log, "store_image", lambda image: 1 / 0)
    chat = asking("Hello", images=[Image.new("RGB", (30, 20))])
    assert answer(answerer, chat)[-1] == AFTER_ERROR and not chat.is_running
    assert chat.conversation.messages[-1][1] == server_error_msg and "see its log" in chat.remarks[1]
    assert "ZeroDivisionError" in caplog.text


def test_no_controller_and_no_worker(answerer: Answerer, running: Any, tmp_path: Path) -> None:
    running[1].close()
    chat = asking("Hello")
    assert answer(answerer, chat)[-1] == AFTER_ERROR
    assert chat.remarks[1] == "The connection to the worker is broken."
    running[0].close()
    chat.regenerate("Default")
    assert answer(answerer, chat)[-1] == AFTER_ERROR
    assert "/get_worker_address cannot be reached" in chat.remarks[1]


def test_stop(answerer: Answerer, running: Any, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.hold.clear()
    chat = asking("Hello")

    def stop_at_two_words(text: str) -> None:
        if text == f"The image{CURSOR}":
            chat.end_answer()

    assert answer(answerer, chat, at_each=stop_at_two_words)[-1] == ALL_ON
    assert chat.conversation.messages[-1][1] == "The image" and chat.figures[1].stopped
    assert running[1].hung_up.wait(5)
    assert logged(tmp_path)[0]["state"]["messages"][-1][1] == "The image"


def test_cancelled_when_the_visitor_leaves(answerer: Answerer, running: Any, behaviour: Behaviour) -> None:
    behaviour.hold.clear()
    chat = asking("Hello")

    async def leave() -> None:
        async for _ in answerer.http_bot(chat, "llava-v1.5-7b", Settings(), ""):
            if chat.conversation.messages[-1][1] == f"The image{CURSOR}":
                task = asyncio.current_task()
                asyncio.get_running_loop().call_soon(task.cancel)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    assert running[1].hung_up.wait(5)
    assert chat.conversation.messages[-1][1] == "The image" and not chat.is_running


def test_markers_of_an_answer_are_removed(answerer: Answerer, behaviour: Behaviour) -> None:
    behaviour.answer = "<im<image>age> is <image>"
    chat = asking("Hello")
    answer(answerer, chat)
    chat.add_text("And?")
    assert "<image>" not in chat.conversation.get_prompt()


def test_empty_answer(answerer: Answerer, behaviour: Behaviour) -> None:
    behaviour.answer = ""
    chat = asking("Hello")
    assert answer(answerer, chat)[-1] == ALL_ON
    assert chat.conversation.messages[-1][1] == "" and chat.remarks[1] == "The model returned an empty answer."


def test_outcome_of_frames() -> None:
    outcome = Outcome()
    outcome.take({"text": "prompt", "error_code": 0}, 6)
    assert outcome.text == "" and outcome.watch.figures(None, False).completion_tokens is None
    outcome.take({"text": "prompt Yes", "error_code": 0, "usage": {"completion_tokens": 4}}, 6)
    outcome.take({"text": "prompt Yes", "error_code": 0}, 6)
    assert outcome.text == "Yes" and outcome.watch.figures(outcome.usage, False).completion_tokens == 4
    outcome.take({"text": "no", "error_code": 3}, 6)
    assert outcome.error == "no (error_code: 3)"


def test_proxies_of_the_environment_are_not_used(
    answerer: Answerer, running: tuple[ControllerDouble, WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert answer(answerer, asking("Hello"))[-1] == ALL_ON


def test_model_list(running: tuple[ControllerDouble, WorkerDouble], answerer: Answerer) -> None:
    names = ["zephyr", "koala-13b", "llava-v1.5", "vicuna-13b", "alpaca"]
    assert sort_models(names) == ["vicuna-13b", "koala-13b", "alpaca", "llava-v1.5", "zephyr"]
    running[0].addresses = dict.fromkeys(names, "")
    assert asyncio.run(answerer.client.list_models()) == sort_models(names)
    assert [request.path for request in running[0].requests] == ["/refresh_all_workers", "/list_models"]


@pytest.mark.parametrize(
    "reply",
    [
        None,
        {},
        {"budgets": "no", "is_elastic": True},
        {"budgets": 5, "is_elastic": True},
        {"conv_mode": ["no"], "connector": {}, "num_visual_tokens": "many"},
        elastic_details(is_elastic=False),
    ],
)
def test_details_of_any_worker(answerer: Answerer, behaviour: Behaviour, reply: Any) -> None:
    behaviour.details = reply
    assert asyncio.run(answerer.client.details_of("llava-v1.5-7b")).budgets == ()
    assert asyncio.run(answerer.client.details_of("unknown")) == ModelDetails()
    assert answer(answerer, asking("Hello"))[-1] == ALL_ON
