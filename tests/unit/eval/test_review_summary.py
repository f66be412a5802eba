"""Summaries of reviews: means, unreadable scores, and the choice of files."""

from pathlib import Path
from typing import Any

import pytest

from llava.eval import summarize_gpt_review
from llava.eval.scoring.score_file import read_score_file
from llava.program import RequestError
from tests.support.scoring import Capture, as_lines


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(as_lines(rows))
    return str(path)


def _summary(*arguments: str) -> None:
    summarize_gpt_review.main(summarize_gpt_review.build_parser().parse_args(arguments))


def test_unreadable_scores_enter_no_mean(tmp_path: Path, capsys: Capture) -> None:
    """Upstream averages them as -1."""
    rows = [
        {"question_id": 1, "category": "b", "tuple": [8, 6]},
        {"question_id": 2, "category": "b", "tuple": [-1, -1]},
        {"question_id": 3, "category": "a", "tuple": [-1, -1]},
        {"question_id": 4, "tuple": [10, 10]},
    ]
    path = _write(tmp_path / "gpt4_text_x.jsonl", rows)
    _summary("-f", path, "--score-file", str(tmp_path / "score.json"), "--experiment", "ours")
    out, err = capsys.readouterr()
    assert out == "x\nall 88.9 90.0 80.0\nb 75.0 80.0 60.0\n=================================\n"
    assert "2 of 4 reviews have no scores" in err
    score = read_score_file(str(tmp_path / "score.json"))
    assert (score.benchmark, score.experiment, score.metric) == ("LLaVA-Bench", "ours", "relative")
    assert score.score == pytest.approx(100 * 16 / 18)
    assert (score.expected, score.answered) == (4, 2)
    assert score.details["b"] == 75.0


def test_means_are_rounded_before_they_are_divided() -> None:
    means = summarize_gpt_review.summarize({"tuple": pair} for pair in ([0, 2], [0, 3], [1, 3]))
    assert means["all"].line("all") == "all 800.9 3.3 26.7"
    assert summarize_gpt_review.summarize([{"tuple": [0, 3]}])["all"].relative == 0


@pytest.mark.parametrize(
    "row",
    [
        {"tuple": [1]},
        {"tuple": [float("nan"), 3]},
        {"tuple": [10**400, 3]},
        {"score": [True, 3]},
        {"tuple": [1, 2], "category": []},
    ],
)
def test_unusable_reviews(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"bad.jsonl, review 1: (no two scores|'category' is not a text)"):
        _summary("-f", _write(tmp_path / "bad.jsonl", [row]))


NAMED = ["a_0613", "review_ab", "reviews_b"]


@pytest.mark.parametrize(
    ("folder", "flags", "names"),
    [
        ("table", [], NAMED),
        ("my_review", [], ["a_0613", "other", "review_ab", "reviews_b"]),  # every file of such a folder
        ("table", ["-s", "review", "a"], ["review_ab"]),
        ("table", ["-v", "0613"], ["a_0613"]),
        ("table", ["-f", "@/other.jsonl"], ["other"]),
    ],
)
def test_which_files(
    folder: str,
    flags: list[str],
    names: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: Capture,
) -> None:
    home = tmp_path_factory.mktemp("x") / folder  # tmp_path has the name of the test, in which upstream finds "review"
    home.mkdir()
    for name in ("gpt4_text_a_0613", "reviews_b", "review_ab", "other"):
        _write(home / f"{name}.jsonl", [{"tuple": [2, 1]}])
    (home / "review_notes.txt").write_text("x")
    _summary("-d", str(home), *(flag.replace("@", str(home)) for flag in flags))
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if line and not line.startswith(("all", "="))] == names


def test_unusable_flags(tmp_path: Path) -> None:
    for name in ("review_a", "review_b"):
        _write(tmp_path / f"{name}.jsonl", [{"tuple": [2, 1]}])
    with pytest.raises(RequestError, match="one experiment"):
        _summary("-d", str(tmp_path), "--score-file", "x")
    with pytest.raises(RequestError, match="--files, or --dir"):
        _summary()
    with pytest.raises(RequestError, match="no file of reviews"):
        _summary("-d", str(tmp_path), "-s", "nothing")
