"""GQA: predictions against answers, by kind and type of question."""

from pathlib import Path

import pytest

from llava.eval.scoring.gqa import BENCHMARK, as_predictions, score_predictions
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_answers, score


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
        ("dog", "Dog", False),  # case matters; as_predictions lower-cases before
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


def test_answers_in_any_order(tmp_path: Path, capsys: Capture) -> None:
    answers = as_answers({"08": "dog", "07": "Dog.", "06": "right", "05": "Yes"})
    score(BENCHMARK, tmp_path, {"--question-file": QUESTIONS, RESULTS: answers})
    assert capsys.readouterr() == (PRINTED, "")


def test_predictions_of_the_converter_and_a_missing_one(tmp_path: Path, capsys: Capture) -> None:
    predictions = [{"questionId": "05", "prediction": "yes"}, {"questionId": "07", "prediction": "dog"}]
    result = score(BENCHMARK, tmp_path, {"--question-file": QUESTIONS, RESULTS: predictions})
    output = capsys.readouterr()
    assert output.out == PRINTED
    assert "2 of 4 questions have no answer and count as wrong: 06, 08" in output.err
    assert (result.benchmark, result.experiment, result.score, result.answered) == ("GQA", "model", 50, 2)


@pytest.mark.parametrize(
    ("questions", "answers", "printed"),
    [
        (QUESTIONS, {"05": "yes", "06": "left"}, "Binary: 100.00%\nOpen: 0.00%\nAccuracy: 50.00%\n"),
        # Only balanced questions count.
        (QUESTIONS | {"08": QUESTIONS["08"] | {"isBalanced": False}}, {"05": "yes", "08": "cat"}, "Accuracy: 33.33%\n"),
        ({"1": {"answer": "yes"}}, {"1": "yes"}, "Accuracy: 100.00%\n"),  # without types
    ],
)
def test_which_questions_count(
    questions: dict, answers: dict[str, str], printed: str, tmp_path: Path, capsys: Capture
) -> None:
    score(BENCHMARK, tmp_path, {"--question-file": questions, RESULTS: as_answers(answers)})
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("questions", "results", "message"),
    [
        ([], "{}", "question-file.json: not a JSON object"),
        ({"1": {"question": "?"}}, "{}", "question 1: there is no 'answer'"),
        (QUESTIONS, as_answers({"5": "yes"}), "answers none of the 4 questions"),
        (QUESTIONS, '{"question_id": "05"}', "entry 1: there is no 'text'"),
    ],
)
def test_unusable_input(questions: object, results: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        score(BENCHMARK, tmp_path, {"--question-file": questions, RESULTS: results})
