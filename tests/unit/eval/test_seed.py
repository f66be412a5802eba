"""SEED-Bench: accuracies, ids, and the submission file."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.scoring.score_file import ScoreFile
from llava.eval.scoring.seed import BENCHMARK, question_key
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_answers, score

SEED = {
    "question_type": {"Scene": 2, "Count": 1, "Unused": 7},
    "questions": [
        {"question_id": "1", "question_type_id": 1, "data_type": "image", "answer": "A"},
        {"question_id": 2, "question_type_id": 2, "data_type": "image", "answer": "B"},
        {"question_id": "v3", "question_type_id": 1, "data_type": "image", "answer": "C"},
    ],
}


def _score(folder: Path, texts: dict[Any, str], annotation: Any = SEED) -> ScoreFile:
    files = {"--annotation-file": annotation, RESULTS: as_answers(texts)}
    return score(BENCHMARK, folder, files | {"--result-upload-file": folder / "new/upload.jsonl"})


@pytest.mark.parametrize(
    ("texts", "printed"),
    [
        # The reply must equal the letter; ids are compared as numbers; types are sorted by id.
        ({1: "A", "2": "B.", "v3": "C"}, ("100.00", "0.00", "66.67", "66.67")),
        # Upstream fails if a type has no right answer, and if answers are missing.
        ({"v3": "D"}, ("0.00", "0.00", "0.00", "0.00")),
        ({"v3": "C"}, ("50.00", "0.00", "33.33", "33.33")),
    ],
)
def test_accuracies(texts: dict[Any, str], printed: tuple[str, ...], tmp_path: Path, capsys: Capture) -> None:
    _score(tmp_path, texts)
    form = "Count: {}%\nScene: {}%\nTotal accuracy: {}%\nimage accuracy: {}%\n"
    assert capsys.readouterr().out == form.format(*printed)


def test_every_question_is_submitted(tmp_path: Path, capsys: Capture) -> None:
    result = _score(tmp_path, {"v3": "C", 2: "B"})
    rows = [json.loads(line) for line in (tmp_path / "new/upload.jsonl").read_text().splitlines()]
    assert [list(row.values()) for row in rows] == [["1", ""], [2, "B"], ["v3", "C"]]
    assert list(rows[0]) == ["question_id", "prediction"]
    assert "1 of 3 questions have no answer and count as wrong" in capsys.readouterr().err
    assert result.score == pytest.approx(200 / 3)
    assert (result.expected, result.answered) == (3, 2)


def test_ids() -> None:
    """Compared as integers if they are integers; a number that Python cannot parse remains a text."""
    assert [question_key(name) for name in (7, "7", "07", "-7", "v7", "7.0")] == [7, 7, 7, -7, "v7", "7.0"]
    assert question_key("9" * 5000) == "9" * 5000


@pytest.mark.parametrize("broken", ["question_type", "questions"])
def test_other_files_are_refused(broken: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"no '{broken}'"):
        _score(tmp_path, {1: "A"}, {key: value for key, value in SEED.items() if key != broken})
