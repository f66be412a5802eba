"""Scorers against upstream's recordings (vectors/llava/eval): standard output and files, exactly."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_textvqa
from llava.eval.scoring import pope, science_qa
from llava.eval.scoring.answers import IncompleteError
from llava.eval.scoring.scorer import run_scorer
from tests.conftest import REPOSITORY, VECTORS

RUNS = {run["name"]: run for run in json.loads((VECTORS / "llava/eval/index.json").read_text())}
PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "llava.eval.eval_pope": lambda argv: run_scorer(pope.BENCHMARK, argv),
    "llava.eval.eval_science_qa": lambda argv: run_scorer(science_qa.BENCHMARK, argv),
    "llava.eval.eval_textvqa": lambda argv: eval_textvqa.main(eval_textvqa.build_parser().parse_args(argv)),
}
SCORED = [name for name, run in RUNS.items() if run["target"] in PROGRAMS and run["rc"] == 0]


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the vectors as working directory; the recorded outputs are not in it."""
    shutil.copytree(VECTORS / "llava/eval", tmp_path / "eval")
    for run in RUNS.values():
        for output in run["outputs"]:
            (tmp_path / output).unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(name: str, *extra: str) -> None:
    PROGRAMS[RUNS[name]["target"]]([*RUNS[name]["argv"], *extra])


def _assert_same_outputs(name: str, folder: Path) -> None:
    for output in RUNS[name]["outputs"]:
        assert (folder / output).read_bytes() == (VECTORS / "llava" / output).read_bytes()


@pytest.mark.parametrize("name", SCORED)
def test_recorded_run(name: str, vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(name)
    assert capsys.readouterr().out == RUNS[name]["stdout"]
    _assert_same_outputs(name, vectors)


@pytest.mark.parametrize("form", ["path", "module"])
@pytest.mark.parametrize("name", ["eval_pope_random", "eval_science_qa", "eval_textvqa_dir"])
def test_recorded_run_from_the_shell(name: str, form: str, vectors: Path) -> None:
    target = RUNS[name]["target"]
    how = [str(REPOSITORY / target.replace(".", "/")) + ".py"] if form == "path" else ["-m", target]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if form == "module":
        environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, *how, *RUNS[name]["argv"]]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout) == (0, RUNS[name]["stdout"]), result.stderr
    _assert_same_outputs(name, vectors)


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


def test_textvqa_with_an_unknown_prompt(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="'only one line'"):
        _run("eval_textvqa_bad_prompt")
    assert capsys.readouterr().out == RUNS["eval_textvqa_bad_prompt"]["stdout"]


def test_textvqa_with_an_unknown_prompt_from_the_shell(vectors: Path) -> None:
    run: dict[str, Any] = RUNS["eval_textvqa_bad_prompt"]
    command = [sys.executable, str(REPOSITORY / "llava/eval/eval_textvqa.py"), *run["argv"]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (run["rc"], run["stdout"])
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["notes.txt", "coco_pope_random.txt", "random.json"])
def test_a_foreign_file_among_popes(name: str, vectors: Path) -> None:
    (vectors / "eval/pope/coco_random" / name).write_text("x")
    with pytest.raises(IncompleteError, match=f"/{name}: "):
        _run("eval_pope_random")
