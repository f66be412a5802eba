"""Summaries of reviews against upstream's recordings (vectors/llava/eval/review)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, VECTORS

RUNS = {run["name"]: run for run in json.loads((VECTORS / "llava/eval/index.json").read_text())}


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if "review" in run["target"]])
@pytest.mark.parametrize("by_path", [True, False])
def test_summary(name: str, by_path: bool, llava_vectors: Path) -> None:
    run = RUNS[name]
    program = [str(REPOSITORY / f"{run['target'].replace('.', '/')}.py")] if by_path else ["-m", run["target"]]
    result = subprocess.run(
        [sys.executable, *program, *run["argv"]], capture_output=True, text=True, cwd=llava_vectors,
        env=os.environ | ({} if by_path else {"PYTHONPATH": str(REPOSITORY)}), check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (run["rc"], run["stdout"]), result.stderr
