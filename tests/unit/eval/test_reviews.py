"""Reviews of two answers: rules, prompts, scores, and continued runs."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_gpt_review, eval_gpt_review_bench, eval_gpt_review_visual
from llava.eval.judging import reviews
from llava.eval.scoring.answers import IncompleteError
from llava.program import RequestError
from tests.support.judge_double import PATH, JudgeDouble, judge_double
from tests.support.scoring import as_lines

KEYS = {
    *("default", "conv", "detail", "complex", "coding", "math"),
    *("llava_bench_conv", "llava_bench_detail", "llava_bench_complex"),
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(as_lines(rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def judge() -> Iterator[JudgeDouble]:
    """Gives the second answer the score that is its text."""

    def reply(message: str) -> str:
        ours = message.split("[Assistant 2]\n")[1].split("\n\n")[0]
        return f"8, {ours}\nThe second one is worth {ours}."

    with judge_double(reply) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    categories = ["conv", "detail", "complex", "conv"]
    questions = [
        {"question_id": 10 + i, "text": f"What {i}?", "category": category, "image": f"{i % 2}.png"}
        for i, category in enumerate(categories)
    ]
    reference = [{"question_id": 10 + i, "text": f"ref {i}"} for i in range(4)]
    ours = [{"question_id": 10 + i, "text": str(5 + i), "answer_id": f"a{i}"} for i in range(4)]
    boxes = [{"category": "dog", "bbox": [0.1, 0.2, 0.5, 0.75]}, {"category": "cat", "bbox": [0, 0, 1, 1]}]
    contexts = [
        {"image": "0.png", "caption": "A dog.", "captions": ["A dog.", "A cat."], "instances": boxes},
        {"image": "1.png", "caption": ["A cat.", "On a mat."], "captions": ["A cat."], "instances": []},
    ]
    return {
        "question": write(tmp_path / "questions.jsonl", questions),
        "reference": write(tmp_path / "reference.jsonl", reference),
        "ours": write(tmp_path / "ours.jsonl", ours),
        "context": write(tmp_path / "context.jsonl", contexts),
        "output": str(tmp_path / "new" / "reviews.jsonl"),
    }


def run(module: Any, files: dict[str, str], judge: JudgeDouble, *more: str) -> list[dict[str, Any]]:
    arguments = ["-q", files["question"], "-a", files["reference"], files["ours"], "-o", files["output"]]
    if module is not eval_gpt_review:
        arguments += ["-c", files["context"]]
    arguments += ["--judge-base-url", judge.base_url, "--judge-retries", "0", *more]
    module.main(module.build_parser().parse_args(arguments))
    return read(Path(files["output"]))


# --- rules and prompts ---


def test_rules_of_the_package() -> None:
    """Every prompt asks for what `parse_scores` reads, in the terms of the published prompts."""
    rules = reviews.read_rules(None)
    assert set(rules) == KEYS
    assert len({rule["prompt"] for rule in rules.values()}) == len(KEYS)
    for key, rule in rules.items():
        assert rule["role"] == "Assistant"
        prompt = rule["prompt"].lower()
        for word in ("two", "helpful", "relevant", "accurate", "detailed", "1 to 10", "first line", "space", "order"):
            assert word in prompt, (key, word)
        assert ("(x1, y1, x2, y2)" in prompt) == (key in ("conv", "detail", "complex"))
        assert ("few sentences" in prompt) == key.startswith("llava_bench")


def test_rules_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    for text, cause in (
        ("[]", "not a file of rules"),
        ('{"a": 1}', "a: not a rule"),
        ('{"a": {"role": "x"}}', "prompt"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=cause):
            reviews.read_rules(str(path))


def test_prompt_of_the_bench(files: dict[str, str], judge: JudgeDouble) -> None:
    run(eval_gpt_review_bench, files, judge)
    (first, second, *_), rules = judge.asked(PATH), reviews.read_rules(None)
    assert first["model"] == "gpt-4-0314"
    assert first["temperature"] == 0.2
    assert first["max_tokens"] == 1024
    assert first["messages"][1]["content"] == (
        "[Context]\nA dog.\n\n[Question]\nWhat 0?\n\n[Assistant 1]\nref 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\n5\n\n[End of Assistant 2]\n\n"
        f"[System]\n{rules['llava_bench_conv']['prompt']}\n\n"
    )
    assert second["messages"][1]["content"].startswith("[Context]\nA cat.\nOn a mat.\n\n[Question]")


def test_prompt_with_boxes(files: dict[str, str], judge: JudgeDouble) -> None:
    records = run(eval_gpt_review_visual, files, judge)
    message = judge.asked(PATH)[0]["messages"][1]["content"]
    context = "A dog.\nA cat.\n\ndog: [0.1, 0.2, 0.5, 0.75]\ncat: [0, 0, 1, 1]"
    assert message.startswith(f"[Context]\n{context}\n\n[Question]\nWhat 0?\n\n")
    assert [record["category"] for record in records] == ["conv", "detail", "complex", "conv"]


def test_prompt_without_context(files: dict[str, str], judge: JudgeDouble, tmp_path: Path) -> None:
    questions = [
        {"question_id": 10 + i, "text": "q", **({"category": c} if c else {})} for i, c in enumerate(["math", "x", ""])
    ]
    files["question"] = write(tmp_path / "q.jsonl", questions)
    for name in ("reference", "ours"):
        files[name] = write(tmp_path / f"{name}3.jsonl", read(Path(files[name]))[:3])
    records = run(eval_gpt_review, files, judge)
    assert [record["category"] for record in records] == ["math", "default", "default"]
    assert [record["tuple"] for record in records] == [[8, 5], [8, 6], [8, 7]], "several at once, in order"
    assert {request["model"] for request in judge.asked(PATH)} == {"gpt-4"}
    assert all(request["messages"][1]["content"].startswith("[Question]\nq\n\n") for request in judge.asked(PATH))
    assert len(run(eval_gpt_review, files, judge)) == 3, "overwritten"


# --- records, scores, continued runs ---


def test_records(files: dict[str, str], judge: JudgeDouble) -> None:
    records = run(eval_gpt_review_bench, files, judge)
    assert records[1] == {
        "id": 2,
        "question_id": 11,
        "answer1_id": 11,
        "answer2_id": "a1",
        "category": "llava_bench_detail",
        "content": "8, 6\nThe second one is worth 6.",
        "tuple": [8, 6],
    }
    assert list(records[0]) == ["id", "question_id", "answer1_id", "answer2_id", "category", "content", "tuple"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 9\nbecause", [8, 9]),
        ("8,9", [8, 9]),
        ("8, 9", [8, 9]),
        ("  7.5  6\n", [7.5, 6]),
        ("8", [-1, -1]),
        ("8 9 10", [-1, -1]),
        ("Assistant 1: 8", [-1, -1]),
        ("nan 3", [-1, -1]),
        ("-3 3", [-1, -1]),
        ("", [-1, -1]),
    ],
)
def test_scores(text: str, expected: list[float]) -> None:
    assert reviews.parse_scores(text) == expected


def test_a_killed_run_is_continued(files: dict[str, str], judge: JudgeDouble) -> None:
    whole = run(eval_gpt_review_bench, files, judge)
    path = Path(files["output"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])
    asked = len(judge.asked(PATH))
    assert run(eval_gpt_review_bench, files, judge) == whole
    assert len(judge.asked(PATH)) == asked + 2
    assert run(eval_gpt_review_bench, files, judge) == whole, "nothing is left to do"


@pytest.mark.parametrize("change", [{"question_id": 99}, {"answer_id": "of a new run"}])
def test_reviews_of_other_answers_are_refused(
    change: dict[str, Any], files: dict[str, str], judge: JudgeDouble
) -> None:
    """Otherwise a new model under an old name would get the old scores."""
    run(eval_gpt_review_bench, files, judge)
    before = Path(files["output"]).read_text()
    for name in ("question", "reference", "ours"):
        rows = read(Path(files[name]))
        rows[1] |= {key: value for key, value in change.items() if name == "ours" or key == "question_id"}
        write(Path(files[name]), rows)
    with pytest.raises(RequestError, match=r"line 2: a review of another answer.*--output"):
        run(eval_gpt_review_bench, files, judge)
    assert Path(files["output"]).read_text() == before


def test_a_last_line_without_its_end_counts_if_it_is_whole(files: dict[str, str], judge: JudgeDouble) -> None:
    """As other programs write it; no review is requested twice."""
    whole = run(eval_gpt_review_bench, files, judge)
    path = Path(files["output"])
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    asked = len(judge.asked(PATH))
    assert run(eval_gpt_review_bench, files, judge) == whole
    assert len(judge.asked(PATH)) == asked + 2


def test_killed_program_leaves_every_review(files: dict[str, str], judge: JudgeDouble) -> None:
    """The program runs by path and is killed while the judge answers the third question."""
    third, killed, reply = threading.Event(), threading.Event(), judge.reply

    def hold(message: str) -> str:
        if "What 2?" in message:
            third.set()
            killed.wait(30)
        return reply(message)

    judge.reply = hold
    program = [sys.executable, eval_gpt_review_bench.__file__, "-q", files["question"], "-c", files["context"]]
    program += ["-a", files["reference"], files["ours"], "-o", files["output"], "--judge-base-url", judge.base_url]
    process = subprocess.Popen(program, cwd=Path(files["question"]).parent)
    assert third.wait(60)
    end = time.monotonic() + 30
    while len(read(Path(files["output"]))) < 2 and time.monotonic() < end:
        time.sleep(0.01)  # the third question may arrive before the second review is written
    process.kill()
    process.wait()
    killed.set()
    assert [record["id"] for record in read(Path(files["output"]))] == [1, 2]
    assert [record["id"] for record in run(eval_gpt_review_bench, files, judge)] == [1, 2, 3, 4]


def test_reviews_are_kept_after_an_error(files: dict[str, str], judge: JudgeDouble) -> None:
    judge.failures = [(), (), (401, "key")]
    with pytest.raises(RequestError, match="refused"):
        run(eval_gpt_review_bench, files, judge)
    assert [record["id"] for record in read(Path(files["output"]))] == [1, 2]


def test_unreadable_scores_are_counted(
    files: dict[str, str], judge: JudgeDouble, caplog: pytest.LogCaptureFixture
) -> None:
    judge.reply = lambda message: "I cannot say."
    assert [record["tuple"] for record in run(eval_gpt_review_bench, files, judge)] == [[-1, -1]] * 4
    assert "4 of 4 reviews have no two scores" in caplog.text


def test_files_that_do_not_belong_together(files: dict[str, str], judge: JudgeDouble, tmp_path: Path) -> None:
    good = dict(files)
    ours = read(Path(good["ours"]))
    files["ours"] = write(tmp_path / "short.jsonl", ours[:3])
    with pytest.raises(RequestError, match="4 questions, but 3 answers"):
        run(eval_gpt_review_bench, files, judge)
    files["ours"] = write(tmp_path / "other.jsonl", [ours[1], ours[0], *ours[2:]])
    with pytest.raises(RequestError, match="line 1: the question is 10, but the answer is to 11"):
        run(eval_gpt_review_bench, files, judge)
    files = good | {"context": write(tmp_path / "c.jsonl", [{"image": "0.png", "caption": "x"}])}
    with pytest.raises(RequestError, match=r"question 11: the context file has no image '1.png'"):
        run(eval_gpt_review_bench, files, judge)
    for module, context in (
        (eval_gpt_review_bench, {"caption": ["x", None]}),
        (eval_gpt_review_visual, {"captions": [], "instances": [{"category": "dog"}]}),
    ):
        files = good | {"context": write(tmp_path / "c.jsonl", [{"image": "0.png"} | context])}
        with pytest.raises(RequestError, match=r"c.jsonl, image '0.png': a caption that is no text"):
            run(module, files, judge)
    rule = tmp_path / "rule.json"
    rule.write_text('{"llava_bench_conv": {"role": "A", "prompt": "p"}}')
    with pytest.raises(IncompleteError, match="no rule 'llava_bench_detail'"):
        run(eval_gpt_review_bench, good, judge, "-r", str(rule))
    assert judge.asked(PATH) == []
