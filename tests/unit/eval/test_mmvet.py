"""MM-Vet: prompts, grades, means, resumption."""

from pathlib import Path
from typing import Any

import pytest

from llava.eval.judging import mmvet
from llava.eval.scoring.score_file import ScoreFile
from llava.program import RequestError
from tests.support import scoring
from tests.support.judge_double import PATH, JudgeDouble, judge_double
from tests.support.scoring import Capture

QUESTIONS = {
    "v1_0": {"question": "What is x?", "answer": "-1 <AND> -5", "capability": ["ocr", "math"], "imagename": "a.png"},
    "v1_1": {"question": "What dog?", "answer": "a pug <OR> pug", "capability": ["rec"]},
    "v1_2": {"question": "Where?", "answer": "left", "capability": ["rec", "spat"]},
    "v1_3": {"question": "Who?", "answer": "nobody", "capability": ["know"]},
}
REPLIES = {"v1_0": "0.5", "v1_1": "1.0", "v1_2": "dunno"}


@pytest.fixture
def judge() -> Any:
    """Its grade is the prediction."""
    with judge_double(lambda message: message.rsplit("Prediction: ", 1)[1].split("\n")[0]) as server:
        yield server


def run(folder: Path, judge: JudgeDouble, replies: Any = REPLIES, *more: str) -> ScoreFile:
    files = {"--annotation-file": QUESTIONS, scoring.RESULTS: replies, "--output": folder / "grades.jsonl"}
    return scoring.score(
        mmvet.BENCHMARK, folder, files, "--judge-base-url", judge.base_url, "--judge-retries", "0", *more
    )


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.0", 0.0),
        ("1", 1.0),
        ("1.0", 1.0),
        ("Grade: 0.7.", 0.7),
        (" .3\n", 0.3),
        ("0.66", 0.7),
        ("10", None),
        ("1.5", None),
        ("-0.5", None),
        ("0.2 or 0.3", None),
        ("none", None),
        ("", None),
    ],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert mmvet.parse_grade(reply) == grade


def test_prompt() -> None:
    prompt = mmvet.grading_prompt("Q?", "a <OR> b", "p\nq")
    assert prompt.endswith("\n\nQuestion: Q?\nGround truth: a <OR> b\nPrediction: p\nq\nGrade:")
    assert prompt.startswith("Grade the prediction")
    examples = [mmvet.parse_grade(grade) for *_, grade in mmvet.EXAMPLES]
    assert None not in examples and {0.0, 1.0} < set(examples)


def test_means(tmp_path: Path, judge: JudgeDouble, capsys: Capture) -> None:
    """A question without a reply counts as wrong and is not judged; an unreadable grade counts nowhere."""
    score = run(tmp_path, judge)
    out, err = capsys.readouterr()
    assert out == "rec: 100.0\nocr: 50.0\nknow: 0.0\nmath: 50.0\ntotal: 50.0\n"
    assert "1 of 4 questions have no answer" in err
    assert "1 grades cannot be read" in err
    assert len(judge.asked(PATH)) == 3
    assert {request["temperature"] for request in judge.asked(PATH)} == {0.0}
    assert (score.benchmark, score.experiment, score.score) == ("MM-Vet", "model", 50.0)
    assert (score.expected, score.answered) == (4, 3)
    assert [entry["group"] for entry in score.items] == ["ocr_math", "rec", "know"]
    assert score.details["judge"] == "gpt-4"


def test_a_run_is_continued(tmp_path: Path, judge: JudgeDouble, capsys: Any) -> None:
    judge.failures = [(), (404, "model")]
    with pytest.raises(RequestError, match="--judge-model"):
        run(tmp_path, judge, REPLIES, "--judge-parallel", "1")
    grades = tmp_path / "grades.jsonl"
    assert len(grades.read_text().splitlines()) == 1
    grades.write_text(grades.read_text() + '{"question_id": "v1_')
    asked = len(judge.asked(PATH))
    run(tmp_path, judge)
    assert len(judge.asked(PATH)) == asked + 2
    assert capsys.readouterr().out.endswith("total: 50.0\n")
    with pytest.raises(RequestError, match="grades of other replies"):
        run(tmp_path, judge, REPLIES | {"v1_1": "0.9"})


def test_bad_files(tmp_path: Path, judge: JudgeDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUESTIONS, "v1_4", {"question": "?"})
    with pytest.raises(RequestError, match="v1_4: there is no 'answer' and no 'capability'"):
        run(tmp_path, judge)
    monkeypatch.delitem(QUESTIONS, "v1_4")
    with pytest.raises(RequestError, match=r"model.jsonl: not an object"):
        run(tmp_path, judge, [])
    with pytest.raises(RequestError, match="none of the judge's replies"):
        run(tmp_path, judge, dict.fromkeys(QUESTIONS, "what?"))
