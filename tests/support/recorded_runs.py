"""Upstream's recorded runs of evaluation programs (tests/vectors/llava/eval)."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import VECTORS

RUNS: dict[str, dict[str, Any]] = {
    run["name"]: run for run in json.loads((VECTORS / "llava/eval/index.json").read_text())
}


def copy_inputs(folder: Path) -> None:
    """Copy the recorded inputs to `folder`, without the recorded outputs and the folders that hold only outputs."""
    shutil.copytree(VECTORS / "llava/eval", folder / "eval")
    for run in RUNS.values():
        for output in run["outputs"]:
            (folder / output).unlink(missing_ok=True)
    # Output of the generator, and input of the converter.
    shutil.copy(VECTORS / "llava/eval/mmbench/mmbench.jsonl", folder / "eval/mmbench/mmbench.jsonl")
    for made in ("convert/up", "convert/mmb_up", "convert/vqav2/answers_upload"):
        shutil.rmtree(folder / "eval" / made)


def assert_same_outputs(name: str, folder: Path) -> None:
    """Compare the files that a run has written with the recorded ones, byte by byte; tables are compared by cells."""
    for output in RUNS[name]["outputs"]:
        if not output.endswith(".xlsx"):
            assert (folder / output).read_bytes() == (VECTORS / "llava" / output).read_bytes()
