"""Converters of scripts/, beyond the recorded runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.program import RequestError
from tests.support.scoring import Capture, as_answers, as_lines, program


def run(script: str, *argv: object) -> None:
    program(f"scripts/convert_{script}.py")(argv)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_vqav2_takes_chunks_in_any_order(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", as_lines({"question_id": n} for n in range(4)))
    write(tmp_path / "answers/sp/ck/merge.jsonl", as_answers({3: "Ten", 0: "A dog.", 1: "x/y"}))
    run("vqav2_for_submission", "--dir", tmp_path, "--ckpt", "ck", "--split", "sp")
    rows = json.loads((tmp_path / "answers_upload/sp/ck.json").read_text())
    assert {row["question_id"]: row["answer"] for row in rows} == {0: "dog", 1: "x y", 2: "", 3: "10"}
    output = capsys.readouterr()
    assert output.out == "total results: 3, total split: 4, error_line: 0\n"
    assert "1 of 4 questions have no answer and are submitted empty: 2" in output.err


def _vizwiz(folder: Path, texts: dict[Any, str]) -> list[dict[str, str]]:
    questions = write(folder / "q.jsonl", as_lines({"question_id": n, "image": f"{n}.jpg"} for n in range(2)))
    answers = write(folder / "a.jsonl", as_answers(texts))
    files = ["--annotation-file", questions, "--result-file", answers, "--result-upload-file", folder / "new/u.json"]
    run("vizwiz_for_submission", *files)
    return json.loads((folder / "new/u.json").read_text())


def test_vizwiz_keeps_the_order_of_the_questions(tmp_path: Path) -> None:
    rows = _vizwiz(tmp_path, {1: "No", 0: "The cat"})
    assert rows == [{"image": "0.jpg", "answer": "cat"}, {"image": "1.jpg", "answer": "no"}]


def test_vizwiz_refuses_an_incomplete_submission(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lacks 1 of the 2 answers"):
        _vizwiz(tmp_path, {1: "No"})
    with pytest.raises(AssertionError, match="answers none of the 2 questions"):
        _vizwiz(tmp_path, {7: "No"})
    assert not (tmp_path / "new").exists()


# --- MMBench ---

COLUMNS = "index question hint A B answer category image source l2-category comment split"


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("\t".join(row) for row in rows)


def _full_table(without: Sequence[str] = ()) -> str:
    columns = [name for name in COLUMNS.split() if name not in without]
    return _table([columns, *([f"{n}" if name == "index" else f"{name}{n}" for name in columns] for n in (7, 8))])


def _mmbench(folder: Path, table: str, answers: Mapping[str, str], experiment: str = "model") -> list[list[Any]]:
    """Convert `answers` (file name -> text, below answers/) and return the cells of the sheet."""
    openpyxl = pytest.importorskip("openpyxl")
    for name, text in answers.items():
        write(folder / f"answers/{name}.jsonl", text)
    files = ["--annotation-file", write(folder / "t.tsv", table), "--result-dir", folder / "answers"]
    run("mmbench_for_submission", *files, "--upload-dir", folder / "new", "--experiment", experiment)
    sheet = openpyxl.load_workbook(folder / f"new/{experiment}.xlsx").active
    return [list(row) for row in sheet.iter_rows(values_only=True)]


@pytest.mark.parametrize(
    ("missing", "columns"),
    [
        ([], "index question A B answer split prediction"),
        (["comment", "l2-category"], "index question A B answer split prediction"),  # upstream fails
        (["comment", "hint", "source", "answer", "split"], "index question A B prediction"),
    ],
)
def test_mmbench_tables(missing: list[str], columns: str, tmp_path: Path) -> None:
    rows = _mmbench(tmp_path, _full_table(missing), {"model": as_answers({8: "B\x07", 7: "A"})})
    assert rows[0] == columns.split()
    assert [row[rows[0].index("prediction")] for row in rows] == ["prediction", "A", "B"]


def test_mmbench_takes_the_first_of_several_rounds(tmp_path: Path) -> None:
    """The letters of later rounds are those of rotated options, but the table has the original ones."""
    rounds = as_answers({7: "A", 8: "B"}, round_id=0) + as_answers({7: "C", 8: "D"}, round_id=1)
    assert [row[-1] for row in _mmbench(tmp_path, _full_table(), {"model": rounds})[1:]] == ["A", "B"]


def test_control_characters_are_removed_from_the_sheet(tmp_path: Path) -> None:
    rows = _mmbench(tmp_path, "index\tquestion\n7\tWhat\x0b?\n", {"model": as_answers({7: "A\x07"})})
    assert rows[1] == [7, "What?", "A"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("index\tprediction\n7\tB\n", "already has a column 'prediction'"),
        ("a\tb\n1\t2\n", "no column index, only a, b"),
    ],
)
def test_other_tables_are_refused(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        _mmbench(tmp_path, table, {"model": as_answers({7: "A"})})


@pytest.mark.parametrize("name", ["../model", "/tmp/model", "a/../../model"])
def test_nothing_is_written_outside_the_folder(name: str, tmp_path: Path) -> None:
    """A name may contain folders."""
    answers = dict.fromkeys(("../model", "model", "x/model"), as_answers({7: "A"}))
    with pytest.raises(RequestError, match="leads out of"):
        _mmbench(tmp_path, _full_table(), answers, name)
    with pytest.raises(RequestError, match="leads out of"):
        run("vqav2_for_submission", "--dir", tmp_path, "--split", "x", "--ckpt", "../../../model")
    _mmbench(tmp_path, _full_table(), answers, "x/model")
    assert [path.relative_to(tmp_path) for path in tmp_path.glob("**/*.xlsx")] == [Path("new/x/model.xlsx")]


def test_gqa_and_mmvet(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", as_answers({"05": "A Cat...", "1": "x. y"}))
    run("gqa_for_eval", "--src", source, "--dst", tmp_path / "new/g.json")
    assert json.loads((tmp_path / "new/g.json").read_text()) == [
        {"questionId": "05", "prediction": "a cat"},
        {"questionId": "1", "prediction": "x. y"},
    ]
    run("mmvet_for_eval", "--src", source, "--dst", tmp_path / "other/m.json")
    assert json.loads((tmp_path / "other/m.json").read_text()) == {"v1_05": "A Cat...", "v1_1": "x. y"}
