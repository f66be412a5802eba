"""Converters of scripts/ against upstream's recordings (vectors/llava/eval): standard output and files, exactly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, VECTORS

RUNS = {run["name"]: run for run in json.loads((VECTORS / "llava/eval/index.json").read_text())}
CONVERTERS = [name for name, run in RUNS.items() if run["target"].startswith("scripts/convert_")]


def _copy_inputs(folder: Path) -> None:
    """The recorded inputs; folders that only hold recorded outputs are not made (E-9)."""
    shutil.copytree(VECTORS / "llava/eval", folder / "eval")
    for run in RUNS.values():
        for output in run["outputs"]:
            (folder / output).unlink(missing_ok=True)
    # Answers that another program of the recording wrote are input here.
    shutil.copy(VECTORS / "llava/eval/mmbench/mmbench.jsonl", folder / "eval/mmbench/mmbench.jsonl")
    for made in ("convert/up", "convert/mmb_up", "convert/vqav2/answers_upload"):
        shutil.rmtree(folder / "eval" / made)


@pytest.mark.parametrize("name", CONVERTERS)
def test_recorded_run(name: str, tmp_path: Path) -> None:
    _copy_inputs(tmp_path)
    run = RUNS[name]
    command = [sys.executable, str(REPOSITORY / run["target"]), *run["argv"]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (run["rc"], run["stdout"]), result.stderr
    for output in run["outputs"]:
        if not output.endswith(".xlsx"):
            assert (tmp_path / output).read_bytes() == (VECTORS / "llava" / output).read_bytes()


def test_cells_of_the_mmbench_table(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    _copy_inputs(tmp_path)
    run = RUNS["convert_mmbench"]
    command = [sys.executable, str(REPOSITORY / run["target"]), *run["argv"]]
    subprocess.run(command, cwd=tmp_path, check=True)
    recorded = json.loads((VECTORS / "llava/eval/convert/mmb_up/mmbench_cells.json").read_text())
    rows = list(openpyxl.load_workbook(tmp_path / run["outputs"][0]).active.iter_rows(values_only=True))
    assert [list(row) for row in rows] == [recorded["columns"], *recorded["rows"]]
