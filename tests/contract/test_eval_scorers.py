"""Scorers, converters and summaries of reviews against upstream's recordings: standard output and files, exactly."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.eval import eval_textvqa
from llava.eval.scoring import pope, science_qa
from llava.eval.scoring.answers import IncompleteError
from llava.eval.scoring.scorer import run_scorer
from tests.conftest import REPOSITORY, VECTORS
from tests.support.recorded_runs import RUNS, assert_same_outputs, copy_inputs

PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "llava.eval.eval_pope": lambda argv: run_scorer(pope.BENCHMARK, argv),
    "llava.eval.eval_science_qa": lambda argv: run_scorer(science_qa.BENCHMARK, argv),
    "llava.eval.eval_textvqa": lambda argv: eval_textvqa.main(eval_textvqa.build_parser().parse_args(argv)),
}
SCORED = [name for name, run in RUNS.items() if run["target"] in PROGRAMS and run["rc"] == 0]
CONVERTERS = [name for name, run in RUNS.items() if run["target"].startswith("scripts/convert_")]
SUMMARIES = [name for name, run in RUNS.items() if "review" in run["target"]]
FROM_THE_SHELL = ["eval_pope_random", "eval_science_qa", "eval_textvqa_dir", "eval_textvqa_bad_prompt", *SUMMARIES]


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the inputs as working directory."""
    copy_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(name: str) -> None:
    PROGRAMS[RUNS[name]["target"]](RUNS[name]["argv"])


@pytest.mark.parametrize("name", SCORED)
def test_scorer(name: str, vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(name)
    assert capsys.readouterr().out == RUNS[name]["stdout"]
    assert_same_outputs(name, vectors)


@pytest.mark.parametrize(
    ("name", "by_path"), [*((name, by_path) for name in FROM_THE_SHELL for by_path in (True, False))]
)
def test_program(name: str, by_path: bool, vectors: Path) -> None:
    run = RUNS[name]
    command = [str(REPOSITORY / f"{run['target'].replace('.', '/')}.py")] if by_path else ["-m", run["target"]]
    _assert_same_run(name, command, vectors, {} if by_path else {"PYTHONPATH": str(REPOSITORY)})


@pytest.mark.parametrize("name", CONVERTERS)
def test_converter(name: str, vectors: Path) -> None:
    """It creates the folders of its outputs, which upstream does not."""
    _assert_same_run(name, [str(REPOSITORY / RUNS[name]["target"])], vectors, {})
    if name == "convert_mmbench":
        openpyxl = pytest.importorskip("openpyxl")
        recorded = json.loads((VECTORS / "llava/eval/convert/mmb_up/mmbench_cells.json").read_text())
        rows = openpyxl.load_workbook(vectors / RUNS[name]["outputs"][0]).active.iter_rows(values_only=True)
        assert list(map(list, rows)) == [recorded["columns"], *recorded["rows"]]


def _assert_same_run(name: str, command: list[str], folder: Path, settings: dict[str, str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | settings
    result = subprocess.run(
        [sys.executable, *command, *RUNS[name]["argv"]], capture_output=True, text=True, env=environment, check=False
    )
    assert (result.returncode, result.stdout) == (RUNS[name]["rc"], RUNS[name]["stdout"]), result.stderr
    assert_same_outputs(name, folder)
    if result.returncode:
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_pope_without_a_yes(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upstream divides by zero after the counts."""
    _run("eval_pope_all_no")
    output = capsys.readouterr().out
    assert output.startswith(RUNS["eval_pope_all_no"]["stdout"])
    assert "Precision: 0.0\nRecall: 0.0\nF1 score: 0.0\nYes ratio: 0.0\n0.000, 0.400, 0.000, 0.000, 0.000\n" in output


def test_science_qa_without_images(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upstream divides by zero."""
    argv = [word.replace("$TMP", str(vectors)) for word in RUNS["eval_science_qa_no_images"]["argv"]]
    run_scorer(science_qa.BENCHMARK, argv)
    assert capsys.readouterr().out == "Total: 12, Correct: 3, Accuracy: 25.00%, IMG-Accuracy: nan%\n"
    assert json.loads((vectors / "r").read_text())["correct"] == 3


def test_textvqa_with_an_unknown_prompt(vectors: Path) -> None:
    with pytest.raises(AssertionError, match="'only one line'"):
        _run("eval_textvqa_bad_prompt")


@pytest.mark.parametrize("name", ["notes.txt", "coco_pope_random.txt", "random.json"])
def test_a_foreign_file_among_popes(name: str, vectors: Path) -> None:
    (vectors / "eval/pope/coco_random" / name).write_text("x")
    with pytest.raises(IncompleteError, match=f"/{name}: "):
        _run("eval_pope_random")
