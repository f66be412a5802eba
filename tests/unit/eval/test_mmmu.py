"""MMMU: reading replies, judging them, and the benchmark's files."""

import json
from pathlib import Path

import pytest

from llava.eval.scoring.mmmu import (
    BENCHMARK,
    DISCIPLINES,
    normalise,
    open_is_right,
    parse_choice,
    parse_open,
    subject_of,
)
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_answers, score

OPTIONS = {"A": "red", "B": "green apple", "C": "blue", "D": "5 V"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) or maybe (C)", "C"),  # the last one
        ("(A), not B", "A"),  # brackets go first
        ("The answer is B", "B"),
        ("A first, then C", "C"),
        ("B. green apple", "B"),  # left to chance by the official rules
        ("I think it is the green apple", "B"),
        ("green apple", None),  # five words or fewer are not searched for the text
        ("It is red at first but then blue", "C"),
        ("E", None),
        ("b", None),
        ("", None),
    ],
)
def test_choice(reply: str, letter: str | None) -> None:
    assert parse_choice(reply, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "values"),
    [("3.14159", [3.14]), ("1,000", [1000.0]), (" Paris ", ["paris"]), ("X", [" x", "x "]), ("-2e3", [-2000.0])],
)
def test_normal_form(text: str, values: list) -> None:
    assert normalise(text) == values


@pytest.mark.parametrize(
    ("reply", "values"),
    [
        ("36 watts", {"36 watts", 36.0}),
        ("The answer is 30.", {30.0}),
        ("x + y = 1,250", {1250.0, 250.0}),  # the rules also see the number behind the comma
        ("-1.5e3 or .25", {"-1.5e3 or .25", -1500.0, -1.0, 3.0, 0.25}),  # and those inside a scientific one
        ("First = 3\nso it is 4", {4.0}),  # an equation counts in the last line only
        ("Paris", {"paris"}),
        (" ANSWER 30. ", {30.0}),
    ],
)
def test_open_reply(reply: str, values: set) -> None:
    assert set(parse_open(reply)) == values


@pytest.mark.parametrize(
    ("answers", "reply", "right"),
    [
        (["30"], "36 watts", False),
        (["36"], "36 watts", True),
        (["36.0"], "It is 36", True),
        (["Paris"], "The capital is Paris, France.", True),
        (["Paris"], "London", False),
        (["24/7", "3.429"], "3.43", True),
        (["24/7", "3.429"], "the result is 24/7", True),
        (["x"], "taxi", False),  # a single letter needs a space next to it
        (["x"], "it is x or y", True),
    ],
)
def test_open_question(answers: list[str], reply: str, right: bool) -> None:
    assert open_is_right(answers, parse_open(reply)) is right


def test_subjects() -> None:
    assert subject_of("validation_Art_Theory_3") == "Art_Theory"
    assert sum(map(len, DISCIPLINES.values())) == 30


def _choice(name: str, answer: object, **more: str) -> dict:
    return {"id": name, "question_type": "multiple-choice", "answer": answer, "index2ans": OPTIONS} | more


QUESTIONS = [
    _choice("validation_Electronics_1", "A", response="A"),
    _choice("validation_Electronics_2", "B", response="who knows"),
    _choice("validation_Music_1", ["C", "D"], response="(D)"),
    {"id": "validation_Math_1", "question_type": "short-answer", "answer": "30", "response": "30 watts"},
]

PRINTED = """Accuracy: 75.00% (4 questions)
Accuracy / discipline:
  Art and Design: 100.00%
  Science: 100.00%
  Tech and Engineering: 50.00%
Accuracy / subject:
  Electronics: 50.00%
  Math: 100.00%
  Music: 100.00%
"""


def test_folder_of_the_official_form(tmp_path: Path, capsys: Capture) -> None:
    for subject, rows in (("Electronics", QUESTIONS[:2]), ("Other", QUESTIONS[2:])):
        (tmp_path / "model" / subject).mkdir(parents=True)
        (tmp_path / "model" / subject / "output.json").write_text(json.dumps(rows))
    result = score(BENCHMARK, tmp_path, {"--annotation-file": tmp_path / "model"})
    output = capsys.readouterr()
    assert output.out == PRINTED
    assert "1 replies name no option and count as wrong (the official tool draws one at random)" in output.err
    assert (result.benchmark, result.experiment, result.score) == ("MMMU", "model", 75)
    assert result.details["unparsable"] == 1


def test_answers_of_the_generator(tmp_path: Path, capsys: Capture) -> None:
    answers = as_answers({"validation_Math_1": "It is 30", "validation_Electronics_2": "B"})
    score(BENCHMARK, tmp_path, {"--annotation-file": QUESTIONS, RESULTS: answers})
    output = capsys.readouterr()
    assert output.out.startswith("Accuracy: 50.00% (4 questions)\n")
    assert "2 of 4 questions have no answer and count as wrong" in output.err


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "holds no questions"),
        ([{"id": "validation_Math_1"}], "no 'question_type' and no 'answer'"),
        ([_choice("validation_Math_1", "A") | {"index2ans": None}], "'index2ans' is not an object of texts"),
        ([_choice("17", "A")], "the id '17' is not <split>_<subject>_<number>"),
        ([QUESTIONS[0]] * 2, "validation_Electronics_1 occurs twice"),
        (QUESTIONS[:1], "answers none of the 1 questions"),
    ],
)
def test_unusable_input(questions: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        score(BENCHMARK, tmp_path, {"--annotation-file": questions, RESULTS: as_answers({"validation_Biology_1": "A"})})
