"""VQAv2 and VizWiz: the accuracy of an answer, and both forms of annotations."""

from pathlib import Path

import pytest

from llava.eval.scoring.vqa import BENCHMARK, vqa_accuracy
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_answers, as_lines, score


@pytest.mark.parametrize(
    ("prediction", "people", "accuracy"),
    [
        ("yes", ["yes"] * 10, 1),
        ("Yes", ["yes"] * 10, 0),  # all people agree: compared without normalisation
        ("Yes", ["yes"] * 9 + ["no"], 1),
        ("no", ["yes"] * 9 + ["no"], 0.3),
        ("no", ["yes"] * 8 + ["no"] * 2, 0.6),
        ("no", ["yes"] * 7 + ["no"] * 3, 0.9),
        ("no", ["yes"] * 6 + ["no"] * 4, 1),
        ("two dogs", ["2 dogs"] * 5 + ["dogs"] * 5, 1),
        ("a dog", ["the dog."] * 5 + ["cat"] * 5, 1),
        ("hot-dog", ["hot dog"] * 5 + ["cat"] * 5, 1),
        ("girl's", ["girls"] * 5 + ["girl's"] * 5, 1),  # the possessive is not separated here
        ("100,978", ["100978"] * 5 + ["1"] * 5, 1),
        ("2:50 pm", ["2:50 pm"] * 5 + ["1"] * 5, 1),
        ("dont", ["don't"] * 5 + ["1"] * 5, 1),
        ("unanswerable", ["unanswerable"] * 3 + ["unsuitable"] * 7, 0.9),
        ("x\ty\n", ["x y"] * 10, 1),
    ],
)
def test_accuracy_of_an_answer(prediction: str, people: list[str], accuracy: float) -> None:
    assert vqa_accuracy(prediction, people) == pytest.approx(accuracy)


def test_the_mean_over_all_ways_to_leave_one_out() -> None:
    people = ["a1"] * 3 + ["b1"] * 7
    left_out = [people[:place] + people[place + 1 :] for place in range(10)]
    expected = sum(min(1, others.count("a1") / 3) for others in left_out) / 10
    assert vqa_accuracy("a1", people) == pytest.approx(expected)


def _people(*answers: str) -> list[dict[str, str]]:
    return [{"answer": answer} for answer in answers for _ in range(10 // len(answers))]


VQAV2 = {
    "annotations": [
        {"question_id": 1, "answer_type": "yes/no", "question_type": "is the", "answers": _people("yes")},
        {"question_id": 2, "answer_type": "number", "question_type": "how many", "answers": _people("2", "3")},
        {"question_id": 3, "answer_type": "other", "question_type": "is the", "answers": _people("dog", "cat")},
    ]
}
VIZWIZ = [
    {"image": "0.jpg", "answer_type": "unanswerable", "answerable": 0, "answers": _people("unanswerable")},
    {"image": "1.jpg", "answer_type": "other", "answerable": 1, "answers": _people("dog", "cat")},
]


def test_vqav2(tmp_path: Path, capsys: Capture) -> None:
    answers = as_answers({2: "Two.", 1: "Yes"})
    result = score(BENCHMARK, tmp_path, {"--annotation-file": VQAV2, RESULTS: answers})
    output = capsys.readouterr()
    assert output.out == (
        "Overall accuracy: 66.67%\n"
        "Accuracy / answer type:\n  number: 100.00%\n  other: 0.00%\n  yes/no: 100.00%\n"
        "Accuracy / question type:\n  how many: 100.00%\n  is the: 50.00%\n"
    )
    assert "1 of 3 questions have no answer and count as wrong: 3" in output.err
    assert (result.benchmark, result.experiment, result.answered) == ("VQAv2", "model", 2)
    assert result.score == pytest.approx(200 / 3)


VIZWIZ_PRINTED = """Overall accuracy: 50.00%
Accuracy / answer type:
  other: 0.00%
  unanswerable: 100.00%
Accuracy / answerable:
  0: 100.00%
  1: 0.00%
"""


def test_vizwiz_submission(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"image": "1.jpg", "answer": "bird"}, {"image": "0.jpg", "answer": "unanswerable"}]
    score(BENCHMARK, tmp_path, {"--annotation-file": VIZWIZ, RESULTS: rows})
    assert capsys.readouterr() == (VIZWIZ_PRINTED, "")


def test_vizwiz_answers_need_their_question_file(tmp_path: Path, capsys: Capture) -> None:
    files = {"--annotation-file": VIZWIZ, RESULTS: as_answers({70: "Unanswerable", 71: "bird"})}
    with pytest.raises(RequestError, match="question 70 is unknown; give its --question-file"):
        score(BENCHMARK, tmp_path, files)
    questions = as_lines({"question_id": 70 + n, "image": f"{n}.jpg"} for n in range(2))
    score(BENCHMARK, tmp_path, files | {"--question-file": questions})
    assert capsys.readouterr().out == VIZWIZ_PRINTED


@pytest.mark.parametrize(
    ("annotations", "results", "message"),
    [
        ({"questions": []}, as_answers({1: "x"}), "neither VQAv2's annotations"),
        ([{"image": "0.jpg"}], as_answers({1: "x"}), "only a split with public ones"),
        ([], as_answers({1: "x"}), "holds no annotations"),
        (VQAV2, as_answers({9: "x"}), "answers none of the 3 questions"),
        (VQAV2, [{"image": "0.jpg", "answer": "x"}], "no 'question_id'"),
    ],
)
def test_unusable_input(annotations: object, results: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        score(BENCHMARK, tmp_path, {"--annotation-file": annotations, RESULTS: results})
