"""HallusionBench: questions, pairs and figures."""

from pathlib import Path

import pytest

from llava.eval.scoring.hallusionbench import BENCHMARK, parse_reply, question_name, score_replies
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_answers, score


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        ("Yes", True),
        ("yes, it is.", True),
        ("No", False),
        ("There is no cat.", False),
        ("Not sure", None),
        ("Yes and no", None),
        ("nothing, yesterday", None),
        ("", None),
    ],
)
def test_meaning_of_a_reply(reply: str, meaning: bool | None) -> None:
    assert parse_reply(reply) is meaning


def _question(category: str, figure: int, asked: int, answer: str, image: str = "1") -> dict:
    return {
        "category": category,
        "subcategory": "illusion",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": str(asked),
        "gt_answer": answer,
        "visual_input": image,
    }


# VD: two questions about two figures. VS: one question without a figure and about one.
QUESTIONS = [
    _question("VD", 0, 0, "1"),
    _question("VD", 0, 1, "0"),
    _question("VD", 1, 0, "0"),
    _question("VD", 1, 1, "1"),
    _question("VS", 0, 0, "1", image="0"),
    _question("VS", 1, 0, "0", image="2"),
]
NAMES = [question_name(question) for question in QUESTIONS]


@pytest.mark.parametrize(
    ("replies", "accuracies"),
    [
        ("Yes No No Yes Yes No", (100, 100, 100)),
        ("Yes No No No Yes No", (500 / 6, 200 / 3, 200 / 3)),  # one question, its pair and its figure
        ("Yes No No Yes No No", (500 / 6, 200 / 3, 100)),  # the question without a figure
        ("Yes Yes Yes Yes Yes Yes", (50, 0, 0)),
        ("maybe No No Yes Yes No", (500 / 6, 200 / 3, 200 / 3)),
    ],
)
def test_accuracies(replies: str, accuracies: tuple[float, ...]) -> None:
    result = score_replies(QUESTIONS, dict(zip(NAMES, replies.split())))
    assert tuple(result.accuracies().values()) == pytest.approx(accuracies)


def test_report(tmp_path: Path, capsys: Capture) -> None:
    answers = as_answers(dict(zip(NAMES[::-1], ["no", "hm", "Yes", "No", "No"])))
    result = score(BENCHMARK, tmp_path, {"--annotation-file": QUESTIONS, RESULTS: answers})
    output = capsys.readouterr()
    assert output.out == (
        "aAcc: 66.67%\nqAcc: 33.33%\nfAcc: 66.67%\n"
        "aAcc / category:\n  VD: 75.00%\n  VS: 50.00%\n"
        "aAcc / subcategory:\n  illusion: 66.67%\n"
    )
    assert "1 of 6 questions have no answer and count as wrong: VD_illusion_0_0_0" in output.err
    assert "1 replies are neither yes nor no and count as wrong: VS_illusion_0_0_0" in output.err
    assert "GPT-4 as judge" in output.err
    assert (result.benchmark, result.answered) == ("HallusionBench", 5)
    assert result.details["qAcc"] == pytest.approx(100 / 3)


def test_annotations_with_predictions(tmp_path: Path, capsys: Capture) -> None:
    replies = ["Yes", "No", "No", "Yes", "No", "No"]
    rows = [question | {"model_prediction": reply} for question, reply in zip(QUESTIONS, replies)]
    score(BENCHMARK, tmp_path, {"--annotation-file": QUESTIONS, RESULTS: rows}, "--pictures-only")
    assert capsys.readouterr().out.startswith("aAcc: 100.00%\nqAcc: 100.00%\nfAcc: 100.00%\n")


@pytest.mark.parametrize(
    ("questions", "answered", "message"),
    [
        ([], NAMES[0], "holds no questions"),
        ([QUESTIONS[0]] * 2, NAMES[0], "VD_illusion_0_0_0 occurs twice"),
        ([QUESTIONS[0] | {"gt_answer": "2"}], NAMES[0], "gt_answer is '2'"),
        ([{"category": "VD"}], NAMES[0], "no 'subcategory'"),
        (QUESTIONS, "0", "answers none of the 6 questions"),
    ],
)
def test_unusable_input(questions: object, answered: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        score(BENCHMARK, tmp_path, {"--annotation-file": questions, RESULTS: as_answers({answered: "Yes"})})
