"""HallusionBench: questions, pairs and figures."""

import json
from pathlib import Path

import pytest

from llava.eval.scoring.hallusionbench import build_parser, main, parse_reply, question_name, score_replies
from llava.eval.scoring.score_file import read_score_file
from llava.program import RequestError


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
def test_what_a_reply_means(reply: str, meaning: bool | None) -> None:
    assert parse_reply(reply) is meaning


def _question(category: str, figure: int, asked: int, answer: str, picture: str = "1") -> dict:
    return {
        "category": category,
        "subcategory": "illusion",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": str(asked),
        "gt_answer": answer,
        "visual_input": picture,
    }


# VD: two questions on two figures. VS: one question without a figure and on one.
QUESTIONS = [
    _question("VD", 0, 0, "1"),
    _question("VD", 0, 1, "0"),
    _question("VD", 1, 0, "0"),
    _question("VD", 1, 1, "1"),
    _question("VS", 0, 0, "1", picture="0"),
    _question("VS", 1, 0, "0", picture="2"),
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


def _run(folder: Path, questions: object, results: str, *extra: str) -> None:
    (folder / "h.json").write_text(json.dumps(questions))
    (folder / "model.jsonl").write_text(results)
    files = ["--annotation-file", str(folder / "h.json"), "--result-file", str(folder / "model.jsonl")]
    main(build_parser().parse_args([*files, *extra]))


def _lines(texts: dict[str, str]) -> str:
    return "\n".join(json.dumps({"question_id": name, "text": text}) for name, text in texts.items())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = dict(zip(NAMES[::-1], ["no", "hm", "Yes", "No", "No"]))
    _run(tmp_path, QUESTIONS, _lines(answers), "--score-file", str(tmp_path / "s.json"))
    output = capsys.readouterr()
    assert output.out == (
        "aAcc: 66.67%\nqAcc: 33.33%\nfAcc: 66.67%\n"
        "aAcc / category:\n  VD: 75.00%\n  VS: 50.00%\n"
        "aAcc / subcategory:\n  illusion: 66.67%\n"
    )
    assert "1 of 6 questions have no answer and count as wrong: VD_illusion_0_0_0" in output.err
    assert "1 replies are neither yes nor no and count as wrong: VS_illusion_0_0_0" in output.err
    assert "GPT-4 as judge" in output.err
    score = read_score_file(str(tmp_path / "s.json"))
    assert (score.benchmark, score.answered) == ("HallusionBench", 5)
    assert score.details["qAcc"] == pytest.approx(100 / 3)


def test_annotations_with_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = ["Yes", "No", "No", "Yes", "No", "No"]
    rows = [question | {"model_prediction": reply} for question, reply in zip(QUESTIONS, replies)]
    _run(tmp_path, QUESTIONS, json.dumps(rows), "--pictures-only")
    assert capsys.readouterr().out.startswith("aAcc: 100.00%\nqAcc: 100.00%\nfAcc: 100.00%\n")


@pytest.mark.parametrize(
    ("questions", "results", "message"),
    [
        ([], _lines({NAMES[0]: "Yes"}), "holds no questions"),
        ([QUESTIONS[0]] * 2, _lines({NAMES[0]: "Yes"}), "VD_illusion_0_0_0 occurs twice"),
        ([QUESTIONS[0] | {"gt_answer": "2"}], _lines({NAMES[0]: "Yes"}), "gt_answer is '2'"),
        ([{"category": "VD"}], _lines({NAMES[0]: "Yes"}), "no 'subcategory'"),
        (QUESTIONS, _lines({"0": "Yes"}), "answers none of the 6 questions"),
    ],
)
def test_unusable_input(questions: object, results: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        _run(tmp_path, questions, results)
