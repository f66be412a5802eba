"""The connectors are self-contained: a copy of their folder works in another code base."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

# Another environment's interpreter, to try the folder under another torch.
PYTHON = os.environ.get("PROJECTOR_PYTHON", sys.executable)


def test_a_copy_of_the_folder_works_alone(tmp_path: Path) -> None:
    folder = REPOSITORY / "llava/model/multimodal_projector"
    shutil.copytree(folder, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "tests/support/copied_projector.py", tmp_path)
    for name in ("llava", "transformers", "numpy"):  # must not be needed
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError\n")
    command = [PYTHON, "copied_projector.py"]
    result = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 16
