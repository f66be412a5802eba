"""MME: replies, tasks, both layouts of the folder, and the files of the official tool."""

from pathlib import Path

import pytest

from llava.eval.scoring.mme import BENCHMARK, MmeQuestion, parse_reply, question_key, read_folder, score_replies
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_lines, score


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("Yes, it is", "yes"),
        ("No.", "no"),
        ("  yes\n", "yes"),
        ("Not", "no"),  # no is in its first four characters
        ("I know", "other"),
        ("nope yes", "no"),
        ("oyes", "yes"),
        ("The yes", "other"),
        ("", "other"),
    ],
)
def test_meaning_of_a_reply(reply: str, meaning: str) -> None:
    assert parse_reply(reply) == meaning


def test_scores() -> None:
    questions = [
        MmeQuestion("count", image, f"Is it {answer}?", answer) for image in ("a", "b") for answer in ("Yes", "No")
    ]
    scores = score_replies(questions, ["Yes", "No", "Yes", "maybe"])
    assert (scores["count"].accuracy, scores["count"].accuracy_plus, scores["count"].score) == (0.75, 0.5, 125)
    assert score_replies(questions, [""] * 4)["count"].score == 0
    assert score_replies(questions, ["yes", "no"] * 2)["count"].score == 200


@pytest.mark.parametrize(
    ("question_id", "text"),
    [
        ("celebrity/a.jpg", "Is it? Please answer yes or no."),
        ("celebrity/a.png", "Is it?"),
        (
            "celebrity/images/a.jpg",
            "Is  it? Please answer yes or no.\nAnswer the question using a single word or phrase.",
        ),
    ],
)
def test_questions_are_recognised_with_and_without_instructions(question_id: str, text: str) -> None:
    assert question_key(question_id, text) == "celebrity\ta\tIs it?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`count` with all files together, `celebrity` with two folders, and a folder that is no task."""
    home = tmp_path / "MME_Benchmark_release_version"
    for place, image in (("count", "0001.png"), ("count", "0002.jpg"), ("celebrity/images", "tt.jpg")):
        texts = place.replace("images", "questions_answers_YN")
        (home / place).mkdir(parents=True, exist_ok=True)
        (home / texts).mkdir(exist_ok=True)
        (home / place / image).touch()
        stem = image.split(".")[0]
        lines = [f"Is {stem} one? Please answer yes or no.\tYes", f"Is {stem} two? Please answer yes or no.\tNo"]
        (home / texts / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    (home / "eval_tool").mkdir()
    return home


def test_both_layouts(folder: Path) -> None:
    questions = read_folder(str(folder))
    assert [(question.task, question.image) for question in questions[::2]] == [
        ("count", "0001.png"),
        ("count", "0002.jpg"),
        ("celebrity", "tt.jpg"),
    ]
    assert questions[1].answer == "No"


def _answers(replies: dict[tuple[str, str], str]) -> str:
    rows = []
    for (image, number), text in replies.items():
        stem = image.split("/")[-1].split(".")[0]
        prompt = f"Is {stem} {number}? Please answer yes or no.\nAnswer the question using a single word or phrase."
        rows.append({"question_id": image, "prompt": prompt, "text": text})
    return as_lines(rows)


REPLIES = {
    ("celebrity/tt.jpg", "two"): "No",
    ("count/0002.jpg", "one"): "yes, it\tis",
    ("count/0001.png", "two"): "yes",
    ("count/0001.png", "one"): "Yes",
    ("count/0002.jpg", "two"): "no",
}


def test_report(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    files = {"--data-dir": folder, RESULTS: _answers(REPLIES), "--results-dir": tmp_path / "Your_Results"}
    result = score(BENCHMARK, tmp_path, files)
    output = capsys.readouterr()
    assert output.out == (
        "=========== Perception ===========\n"
        "total score: 175.00\n"
        "\tcount score: 125.00 (acc 75.00%, acc+ 50.00%)\n"
        "\tcelebrity score: 50.00 (acc 50.00%, acc+ 0.00%)\n"
        "=========== Cognition ===========\n"
        "total score: 0.00\n"
    )
    assert "1 of 6 questions have no answer and count as wrong" in output.err
    assert "lacks 12 of 14 tasks" in output.err
    assert (tmp_path / "Your_Results/count.txt").read_text() == (
        "0001.png\tIs 0001 one? Please answer yes or no.\tYes\tYes\n"
        "0001.png\tIs 0001 two? Please answer yes or no.\tNo\tyes\n"
        "0002.jpg\tIs 0002 one? Please answer yes or no.\tYes\tyes, it is\n"
        "0002.jpg\tIs 0002 two? Please answer yes or no.\tNo\tno\n"
    )
    assert (result.benchmark, result.score, result.expected, result.answered) == ("MME", 175, 6, 5)
    assert (result.details["perception"], result.details["cognition"], result.details["other"]) == (175, 0, 1)


def test_unusable_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="should be MME_Benchmark_release_version"):
        score(BENCHMARK, tmp_path, {"--data-dir": tmp_path, RESULTS: "{}"})
    for text in ("Is it?\tYes\n", "Is it?\tYes\nIs it not? No\n", "Is it?\tYes\nIs it not?\tMaybe\n"):
        (folder / "count/0001.txt").write_text(text)
        with pytest.raises(RequestError, match=r"0001\.txt: not two lines"):
            score(BENCHMARK, tmp_path, {"--data-dir": folder, RESULTS: _answers(REPLIES)})


def test_answers_to_other_questions(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="answers none of the 6 questions"):
        score(BENCHMARK, tmp_path, {"--data-dir": folder, RESULTS: _answers({("scene/x.jpg", "one"): "Yes"})})
