"""Converters of scripts/: what the recordings do not hold."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.eval.scoring.scorer import run_scorer
from llava.eval.scoring.seed import question_key
from llava.program import RequestError
from tests.conftest import REPOSITORY


def run(script: str, *argv: object) -> None:
    """Run a script in this process."""
    names = runpy.run_path(str(REPOSITORY / "scripts" / f"{script}.py"))
    words = [str(word) for word in argv]
    if "BENCHMARK" in names:
        run_scorer(names["BENCHMARK"], words)
    else:
        names["main"](names["build_parser"]().parse_args(words))


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path: Path, texts: dict[Any, str]) -> Path:
    return lines(path, [{"question_id": name, "text": text} for name, text in texts.items()])


SEED = {
    "question_type": {"Scene": 2, "Count": 1, "Unused": 7},
    "questions": [
        {"question_id": "1", "question_type_id": 1, "data_type": "image", "answer": "A"},
        {"question_id": 2, "question_type_id": 2, "data_type": "image", "answer": "B"},
        {"question_id": "v3", "question_type_id": 1, "data_type": "image", "answer": "C"},
    ],
}


def _seed(folder: Path, texts: dict[Any, str], *extra: object) -> list[dict[str, Any]]:
    (folder / "seed.json").write_text(json.dumps(SEED))
    source, target = answers(folder / "a.jsonl", texts), folder / "new/upload.jsonl"
    files = ["--annotation-file", folder / "seed.json", "--result-file", source, "--result-upload-file", target]
    run("convert_seed_for_submission", *files, *extra)
    return [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.parametrize(
    ("texts", "printed"),
    [
        # The reply must equal the letter; ids compare as numbers; types come in the order of their ids.
        ({1: "A", "2": "B.", "v3": "C"}, ("100.00", "0.00", "66.67", "66.67")),
        # Upstream fails if a type has no right answer, and if answers are missing.
        ({"v3": "D"}, ("0.00", "0.00", "0.00", "0.00")),
        ({"v3": "C"}, ("50.00", "0.00", "33.33", "33.33")),
    ],
)
def test_seed_scores(
    texts: dict[Any, str], printed: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _seed(tmp_path, texts)
    form = "Count: {}%\nScene: {}%\nTotal accuracy: {}%\nimage accuracy: {}%\n"
    assert capsys.readouterr().out == form.format(*printed)


def test_seed_submits_every_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _seed(tmp_path, {"v3": "C", 2: "B"}, "--score-file", tmp_path / "s.json", "--experiment", "x")
    assert rows == [
        {"question_id": "1", "prediction": ""},
        {"question_id": 2, "prediction": "B"},
        {"question_id": "v3", "prediction": "C"},
    ]
    assert "1 of 3 questions have no answer and count as wrong" in capsys.readouterr().err
    score = json.loads((tmp_path / "s.json").read_text())
    assert score["score"] == pytest.approx(200 / 3)
    assert (score["expected"], score["answered"]) == (3, 2)


def test_seed_ids() -> None:
    """Compared as integers where they are ones; a number beyond what Python reads stays a text."""
    assert [question_key(name) for name in (7, "7", "07", "-7", "v7", "7.0")] == [7, 7, 7, -7, "v7", "7.0"]
    assert question_key("9" * 5000) == "9" * 5000


@pytest.mark.parametrize("broken", ["question_type", "questions"])
def test_seed_refuses_other_files(broken: str, tmp_path: Path) -> None:
    (tmp_path / "seed.json").write_text(json.dumps({key: value for key, value in SEED.items() if key != broken}))
    source = answers(tmp_path / "a.jsonl", {1: "A"})
    files = ["--annotation-file", tmp_path / "seed.json", "--result-file", source]
    with pytest.raises(ValueError, match=f"no '{broken}'"):
        run("convert_seed_for_submission", *files, "--result-upload-file", tmp_path / "u")


def _vqav2(folder: Path, texts: dict[Any, str]) -> dict[Any, str]:
    lines(folder / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": n} for n in range(4)])
    answers(folder / "answers/sp/ck/merge.jsonl", texts)
    run("convert_vqav2_for_submission", "--dir", folder, "--ckpt", "ck", "--split", "sp")
    rows = json.loads((folder / "answers_upload/sp/ck.json").read_text())
    return {row["question_id"]: row["answer"] for row in rows}


def test_vqav2_takes_chunks_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _vqav2(tmp_path, {3: "Ten", 0: "A dog.", 1: "x/y"}) == {0: "dog", 1: "x y", 2: "", 3: "10"}
    output = capsys.readouterr()
    assert output.out == "total results: 3, total split: 4, error_line: 0\n"
    assert "1 of 4 questions have no answer and are submitted empty: 2" in output.err


def _vizwiz(folder: Path, texts: dict[Any, str]) -> list[dict[str, str]]:
    questions = lines(folder / "q.jsonl", [{"question_id": n, "image": f"{n}.jpg"} for n in range(2)])
    files = ["--annotation-file", questions, "--result-file", answers(folder / "a.jsonl", texts)]
    run("convert_vizwiz_for_submission", *files, "--result-upload-file", folder / "new/u.json")
    return json.loads((folder / "new/u.json").read_text())


def test_vizwiz_keeps_the_order_of_the_questions(tmp_path: Path) -> None:
    assert _vizwiz(tmp_path, {1: "No", 0: "The cat"}) == [
        {"image": "0.jpg", "answer": "cat"},
        {"image": "1.jpg", "answer": "no"},
    ]


def test_vizwiz_refuses_an_incomplete_submission(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lacks 1 of the 2 answers"):
        _vizwiz(tmp_path, {1: "No"})
    with pytest.raises(AssertionError, match="answers none of the 2 questions"):
        _vizwiz(tmp_path, {7: "No"})
    assert not (tmp_path / "new").exists()


MMBENCH_TABLE = "index question hint A B answer category image source l2-category comment split"


def _mmbench(folder: Path, leave_out: Sequence[str], write_answers: Callable[[Path], object]) -> list[list[Any]]:
    openpyxl = pytest.importorskip("openpyxl")
    columns = [name for name in MMBENCH_TABLE.split() if name not in leave_out]
    rows = [[str(number) if name == "index" else f"{name}{number}" for name in columns] for number in (7, 8)]
    (folder / "t.tsv").write_text("\n".join("\t".join(row) for row in [columns, *rows]))
    write_answers(folder / "answers/model.jsonl")
    files = ["--annotation-file", folder / "t.tsv", "--result-dir", folder / "answers"]
    run("convert_mmbench_for_submission", *files, "--upload-dir", folder / "new", "--experiment", "model")
    sheet = openpyxl.load_workbook(folder / "new/model.xlsx").active
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
    rows = _mmbench(tmp_path, missing, lambda path: answers(path, {8: "B\x07", 7: "A"}))
    assert rows[0] == columns.split()
    assert [row[rows[0].index("prediction")] for row in rows] == ["prediction", "A", "B"]


def test_mmbench_takes_the_first_of_several_rounds(tmp_path: Path) -> None:
    """The letters of the later rounds stand for rotated options, the table shows them as they are."""
    rounds = [
        {"question_id": number, "round_id": turn, "text": text}
        for turn, texts in enumerate(("AB", "CD"))
        for number, text in zip((7, 8), texts)
    ]
    rows = _mmbench(tmp_path, [], lambda path: lines(path, rounds))
    assert [row[-1] for row in rows[1:]] == ["A", "B"]


def test_mmbench_table_with_control_characters(tmp_path: Path) -> None:
    """A sheet may not hold them, wherever they stand."""
    pytest.importorskip("openpyxl")
    answers(tmp_path / "model.jsonl", {7: "A\x07"})
    (tmp_path / "t.tsv").write_text("index\tquestion\n7\tWhat\x0b?\n")
    files = ["--annotation-file", tmp_path / "t.tsv", "--result-dir", tmp_path, "--upload-dir", tmp_path]
    run("convert_mmbench_for_submission", *files, "--experiment", "model")
    (tmp_path / "t.tsv").write_text("index\tprediction\n7\tB\n")
    with pytest.raises(RequestError, match="already has a column 'prediction'"):
        run("convert_mmbench_for_submission", *files, "--experiment", "model")


@pytest.mark.parametrize("name", ["../model", "/tmp/model", "a/../../model"])
def test_nothing_is_written_outside_the_folder(name: str, tmp_path: Path) -> None:
    """A name with folders of its own is taken."""
    pytest.importorskip("openpyxl")
    (tmp_path / "t.tsv").write_text("index\tquestion\n7\tWhat?\n")
    files = ["--annotation-file", tmp_path / "t.tsv", "--result-dir", tmp_path / "a", "--upload-dir", tmp_path / "b"]
    for path in ("model", "a/model", "a/x/model"):
        answers(tmp_path / f"{path}.jsonl", {7: "A"})
    with pytest.raises(RequestError, match="leads out of"):
        run("convert_mmbench_for_submission", *files, "--experiment", name)
    with pytest.raises(RequestError, match="leads out of"):
        run("convert_vqav2_for_submission", "--dir", tmp_path, "--split", "x", "--ckpt", "../../../model")
    run("convert_mmbench_for_submission", *files, "--experiment", "x/model")
    assert [path.name for path in tmp_path.glob("**/*.xlsx")] == ["model.xlsx"]
    assert (tmp_path / "b/x/model.xlsx").exists()


def test_mmbench_refuses_another_table(tmp_path: Path) -> None:
    answers(tmp_path / "model.jsonl", {7: "A"})
    (tmp_path / "t.tsv").write_text("a\tb\n1\t2\n")
    files = ["--annotation-file", tmp_path / "t.tsv", "--result-dir", tmp_path, "--upload-dir", tmp_path / "new"]
    with pytest.raises(ValueError, match="no column index, only a, b"):
        run("convert_mmbench_for_submission", *files, "--experiment", "model")


def test_gqa_and_mmvet(tmp_path: Path) -> None:
    source = answers(tmp_path / "a.jsonl", {"05": "A Cat...", "1": "x. y"})
    run("convert_gqa_for_eval", "--src", source, "--dst", tmp_path / "new/g.json")
    assert json.loads((tmp_path / "new/g.json").read_text()) == [
        {"questionId": "05", "prediction": "a cat"},
        {"questionId": "1", "prediction": "x. y"},
    ]
    run("convert_mmvet_for_eval", "--src", source, "--dst", tmp_path / "other/m.json")
    assert json.loads((tmp_path / "other/m.json").read_text()) == {"v1_05": "A Cat...", "v1_1": "x. y"}
