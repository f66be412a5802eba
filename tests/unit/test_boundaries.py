"""The import boundaries of pyproject.toml: each is broken once in a copy of the package, and reported by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Contract -> (file, import line) that breaks it.
BREACHES = {
    "Imports go down: programs, tools, model, ground floor": ("llava/model/splice.py", "from llava.train import data"),
    "The connectors are self-contained": ("llava/model/multimodal_projector/mlp.py", "import transformers"),
    "The controller, the page and the wire run without torch": ("llava/serve/wire.py", "import torch"),
    "The engine knows nothing of HTTP or of the worker": ("llava/serve/engine/engine.py", "import fastapi"),
    "Scoring, judging and reporting run without torch": (
        "llava/eval/scoring/pope.py",
        "from llava.model import builder",
    ),
    "llava never imports the playground or the patches": ("llava/utils.py", "import playground"),
    "The graft runs without torch and never loads what it copies": ("patches/plan.py", "from patches import bridge"),
    "The bridge needs the connectors and torch only": ("patches/bridge/vision.py", "from llava import constants"),
}


def lint(folder: Path) -> str:
    """The report of `lint-imports` on the packages in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    shutil.copytree(REPOSITORY / "llava", folder / "llava")
    shutil.copytree(REPOSITORY / "patches", folder / "patches")
    shutil.copytree(REPOSITORY / "playground", folder / "playground", ignore=shutil.ignore_patterns("data", "bases"))
    return folder


def test_all_boundaries_hold(packages: Path) -> None:
    report = lint(packages)
    assert f"{len(BREACHES)} kept, 0 broken" in report, report


@pytest.mark.parametrize("contract", BREACHES)
def test_a_breach_is_reported(contract: str, packages: Path) -> None:
    file, line = BREACHES[contract]
    source = packages / file
    intact = source.read_text()
    source.write_text(f"{intact}\n{line}\n")
    try:
        assert f"{contract} BROKEN" in lint(packages)
    finally:
        source.write_text(intact)
