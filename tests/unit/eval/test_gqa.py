"""GQA: predictions against answers, by kind and type of question."""

import json
from pathlib import Path

import pytest

from llava.eval.scoring.gqa import as_predictions, build_parser, main, score_predictions
from llava.eval.scoring.score_file import read_score_file
from llava.program import RequestError


def _question(answer: str, structural: str, semantic: str = "attr") -> dict:
    return {"answer": answer, "isBalanced": True, "types": {"structural": structural, "semantic": semantic}}


QUESTIONS = {
    "05": _question("yes", "verify"),
    "06": _question("left", "choose", "rel"),
    "07": _question("dog", "query"),
    "08": _question("cat", "query", "rel"),
}


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        ("dog", "dog", True),
        ("dog", "Dog", False),  # case counts; as_predictions lowers it before
        ("dog", "a dog", False),
        ("dog", "dogs", False),
        ("dog", None, False),
    ],
)
def test_a_prediction_must_equal_the_answer(answer: str, prediction: str | None, right: bool) -> None:
    predictions = {} if prediction is None else {"1": prediction}
    assert score_predictions({"1": {"answer": answer}}, predictions).right == {"1": right}


@pytest.mark.parametrize(
    ("text", "prediction"),
    [("Yes.", "yes"), ("A Dog", "a dog"), ("left..", "left"), ("Blue. Sky.", "blue. sky"), ("", "")],
)
def test_predictions(text: str, prediction: str) -> None:
    assert as_predictions([{"question_id": "1", "text": text}]) == [{"questionId": "1", "prediction": prediction}]


def _run(folder: Path, questions: object, results: str, name: str = "merge.jsonl", *extra: str) -> None:
    (folder / "q.json").write_text(json.dumps(questions))
    (folder / name).write_text(results)
    files = ["--question-file", str(folder / "q.json"), "--result-file", str(folder / name)]
    main(build_parser().parse_args([*files, *extra]))


def _lines(answers: dict[str, str]) -> str:
    return "".join(json.dumps({"question_id": key, "text": text}) + "\n" for key, text in answers.items())


PRINTED = """Binary: 50.00%
Open: 50.00%
Accuracy: 50.00%
Accuracy / structural type:
  choose: 0.00%
  query: 50.00%
  verify: 100.00%
Accuracy / semantic type:
  attr: 100.00%
  rel: 0.00%
"""


def test_answers_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, QUESTIONS, _lines({"08": "dog", "07": "Dog.", "06": "right", "05": "Yes"}))
    assert capsys.readouterr() == (PRINTED, "")


def test_predictions_of_the_converter_and_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = [{"questionId": "05", "prediction": "yes"}, {"questionId": "07", "prediction": "dog"}]
    score_file = str(tmp_path / "s.json")
    _run(tmp_path, QUESTIONS, json.dumps(predictions), "p.json", "--score-file", score_file)
    output = capsys.readouterr()
    assert output.out == PRINTED
    assert "2 of 4 questions have no answer and count as wrong: 06, 08" in output.err
    score = read_score_file(score_file)
    assert (score.benchmark, score.experiment, score.score, score.answered) == ("GQA", "p", 50, 2)


def test_questions_that_ask_for_a_thing_are_open() -> None:
    result = score_predictions(QUESTIONS, {"05": "yes", "06": "left"})
    assert result.kinds == {"binary": 100, "open": 0}


def test_only_balanced_questions_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, QUESTIONS | {"08": QUESTIONS["08"] | {"isBalanced": False}}, _lines({"05": "yes", "08": "cat"}))
    assert "Accuracy: 33.33%\n" in capsys.readouterr().out


def test_questions_without_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, {"1": {"answer": "yes"}}, _lines({"1": "yes"}))
    assert capsys.readouterr().out == "Accuracy: 100.00%\n"


@pytest.mark.parametrize(
    ("questions", "results", "message"),
    [
        ([], "{}", "q.json: not a JSON object"),
        ({"1": {"question": "?"}}, "{}", "question 1: there is no 'answer'"),
        (QUESTIONS, _lines({"5": "yes"}), "answers none of the 4 questions"),
        (QUESTIONS, '{"question_id": "05"}', "entry 1: there is no 'text'"),
    ],
)
def test_unusable_input(questions: object, results: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        _run(tmp_path, questions, results)
