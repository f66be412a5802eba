"""The judge client against a server on loopback: retries, refusals, order; and the text-only baseline."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava.eval import qa_baseline_gpt35
from llava.eval.judging.judge import Judge, JudgeOptions, JudgeUnreachableError, QuestionRefusedError, map_in_order
from llava.program import RequestError
from tests.support.judge_double import PATH, JudgeDouble, judge_double
from tests.support.scoring import as_answers


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeDouble]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with judge_double(lambda question: f"reply to {question}") as double:
        yield double


def judge(server: JudgeDouble, **options: Any) -> Judge:
    return Judge(JudgeOptions("m", server.base_url, **({"pause": 0.01, "retries": 3} | options)))


def test_request(server: JudgeDouble) -> None:
    assert judge(server, temperature=0.3, max_tokens=7).ask("system", "user") == "reply to user"
    messages = [{"role": "system", "content": "system"}, {"role": "user", "content": "user"}]
    assert server.asked(PATH) == [{"model": "m", "messages": messages, "temperature": 0.3, "max_tokens": 7}]


def test_the_key(server: JudgeDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's server needs one; another server receives it if there is one."""
    with pytest.raises(RequestError, match=r"OPENAI_API_KEY.*--judge-base-url"):
        Judge(JudgeOptions("m"))
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    judge(server).ask("s", "u")
    headers = {name.lower(): value for name, value in server.requests[0][2].items()}
    assert headers["authorization"] == "Bearer word"


@pytest.mark.parametrize("failure", [(500, "x"), (503, "x"), (429, "rate_limit"), (408, "x"), None])
def test_transient_failures_are_retried(server: JudgeDouble, failure: Any) -> None:
    server.failures = [failure, failure]
    assert judge(server).ask("s", "u") == "reply to u"
    assert len(server.asked(PATH)) == 3


def test_retries_are_bounded(server: JudgeDouble) -> None:
    server.failures = [(500, "x")] * 10
    with pytest.raises(JudgeUnreachableError, match=r"no reply in 4 tries .*failed: x.*kept"):
        judge(server).ask("s", "u")
    assert len(server.asked(PATH)) == 4


def test_no_server(server: JudgeDouble) -> None:
    client = judge(server, retries=1)
    server.close()
    with pytest.raises(JudgeUnreachableError, match="no reply in 2 tries"):
        client.ask("s", "u")


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        ((400, "bad"), "failed: bad.*--judge-model"),
        ((401, "key"), "OPENAI_API_KEY"),
        ((403, "key"), "OPENAI_API_KEY"),
        ((404, "model"), "no model 'm'.*--judge-model"),
        ((429, "insufficient_quota"), "no quota"),
    ],
)
def test_refusals_end_at_once(server: JudgeDouble, failure: tuple[int, str], remedy: str) -> None:
    server.failures = [failure]
    with pytest.raises(RequestError, match=remedy) as refusal:
        judge(server).ask("s", "u")
    assert not isinstance(refusal.value, JudgeUnreachableError)
    assert isinstance(refusal.value, QuestionRefusedError) == (failure[0] == 400)
    assert len(server.asked(PATH)) == 1


@pytest.mark.parametrize(
    "page", [("text/html", b"<html>"), *(("application/json", body) for body in (b"[1]", b"null", b'{"choices": 1}'))]
)
def test_some_other_server(server: JudgeDouble, page: tuple[str, bytes]) -> None:
    server.page = page
    with pytest.raises(RequestError, match=r"no OpenAI-compatible server.*/v1"):
        judge(server).ask("s", "u")


@pytest.mark.parametrize("body", [b"", b'{"choices": [', b"[" * 100_000])
def test_half_a_reply_is_requested_again(server: JudgeDouble, body: bytes) -> None:
    server.page = ("application/json", body)
    with pytest.raises(JudgeUnreachableError, match="no reply in 2 tries"):
        judge(server, retries=1).ask("s", "u")
    assert len(server.asked(PATH)) == 2


@pytest.mark.parametrize("choice", ['{"message": null}', '{"message": {"content": null}}', '"x"', "{}"])
def test_a_reply_without_text_is_empty(server: JudgeDouble, choice: str) -> None:
    server.page = ("application/json", b'{"choices": [%s]}' % choice.encode())
    assert judge(server).ask("s", "u") == ""


@pytest.mark.parametrize("failure", [(401, "no such key: word1"), (500, "no such key: word1")])
def test_no_message_holds_a_secret(
    server: JudgeDouble, failure: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "word1")
    server.failures = [failure]
    address = server.base_url.replace("//", "//user:word2@")
    with pytest.raises(RequestError, match="no such key") as error:
        Judge(JudgeOptions("m", address, retries=0)).ask("s", "u")
    assert "word" not in str(error.value)


def test_newer_models_have_another_name_for_the_limit(server: JudgeDouble) -> None:
    server.newer = True
    client = judge(server, max_tokens=9)
    assert [client.ask("s", "a"), client.ask("s", "b")] == ["reply to a", "reply to b"]
    assert [request.get("max_completion_tokens") for request in server.asked(PATH)] == [None, 9, 9]


def test_newer_models_asked_by_several_threads_at_once(server: JudgeDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are refused once, even if another thread has learned the new name meanwhile."""
    server.newer = True
    client, together = judge(server), threading.Barrier(4)
    create = client._client.chat.completions.create

    def create_at_once(**request: Any) -> Any:
        try:
            return create(**request)
        finally:
            if "max_tokens" in request:
                together.wait(30)

    monkeypatch.setattr(client._client.chat.completions, "create", create_at_once)
    assert list(map_in_order(lambda text: client.ask("s", text), "abcd", 4)) == [f"reply to {c}" for c in "abcd"]


def test_results_keep_the_order_and_an_error_drops_the_rest() -> None:
    running, most, done = [0], [0], []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02 if number % 2 else 0.05)
        with lock:
            running[0] -= 1
            done.append(number)
        if number == 13:
            raise ValueError("13")
        return number

    assert list(map_in_order(work, range(12), 4)) == list(range(12))
    assert 1 < most[0] <= 4
    done.clear()
    with pytest.raises(ValueError, match="13"):
        list(map_in_order(work, range(13, 60), 2))
    assert len(done) < 10


def test_text_baseline(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(as_answers({i: f"t{i}" for i in (3, 1, "x", 2)}))
    arguments = ["-q", str(questions), "-o", str(tmp_path / "a.jsonl"), "--judge-parallel", "1"]
    with judge_double(lambda text: f"re {text}") as server:
        server.failures = [(500, "x")] * 3 + [(400, "too long")]
        args = qa_baseline_gpt35.build_parser().parse_args([*arguments, "--judge-base-url", server.base_url])
        assert (args.judge_model, args.judge_retries, args.max_tokens) == ("gpt-3.5-turbo", 2, 1024)
        qa_baseline_gpt35.main(args)
        assert server.asked(PATH)[0]["messages"][0] == {"role": "system", "content": "You are a helpful assistant."}
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [len(answer.pop("answer_id")) for answer in answers] == [22] * 4
    texts = {1: "#ERROR#", 2: "re t2", 3: "#ERROR#", "x": "re tx"}
    assert answers == [
        {"question_id": number, "model_id": "gpt-3.5-turbo:20230327", "text": text} for number, text in texts.items()
    ]
