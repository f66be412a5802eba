"""The LLaVA of February 2024 (PyPI: llava-torch), its environment, and copies of its code with the connectors."""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patches import graft
from tests.conftest import REPOSITORY

SETUP = REPOSITORY / "tests/llava_torch/setup.sh"
JOBS = REPOSITORY / "tests/llava_torch/jobs.py"
ENVIRONMENT = REPOSITORY / ".venv-llava-torch"
REGISTRY_OUT_OF_REACH = 3


@functools.cache
def pristine() -> Path:
    """The folder that holds the unchanged package `llava`; the first call creates the environment.

    Skips the test where the package registry cannot be reached, or this Python is too new for packages of that age.
    """
    if sys.version_info >= (3, 13):
        pytest.skip("transformers 4.37 and numpy 1.26 have no packages for Python 3.13")
    with open(f"{ENVIRONMENT}.lock", "w") as lock:  # several test processes may come here
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = subprocess.run(
            ["bash", str(SETUP), str(ENVIRONMENT)],
            env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if result.returncode == REGISTRY_OUT_OF_REACH:
        pytest.skip(f"llava-torch cannot be fetched here (bash {SETUP}): {result.stderr}")
    assert result.returncode == 0, result.stderr
    return ENVIRONMENT / "pristine"


def copy_code(folder: Path, with_connectors: bool = True) -> Path:
    """A copy of the package `llava` in `folder`, which can then be a PYTHONPATH."""
    shutil.copytree(pristine() / "llava", folder / "llava")
    if with_connectors:
        assert graft.main([str(folder), "--apply"]) == 0
    return folder


def run_jobs(code: Path, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Run jobs (tests/llava_torch/jobs.py) one after the other in a process of the old environment.

    Args:
        code: the folder that holds the package.
        folder: for the list of jobs and the output; also the working directory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    with open(folder / "jobs.log", "w") as log:
        result = subprocess.run(
            [str(ENVIRONMENT / "bin/python"), str(JOBS), "jobs.json"],
            cwd=folder, env=environment | {"PYTHONPATH": str(code)}, stdout=log, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    assert result.returncode == 0, (folder / "jobs.log").read_text()[-4000:]
