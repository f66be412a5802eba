"""scripts/quickstart.sh from end to end, with very few steps: what it writes, prints, and skips the second time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.test_distributed import free_port

pytestmark = pytest.mark.e2e


def quickstart(tmp_path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "RUNS": str(tmp_path / "runs"), "DATA": str(tmp_path / "data"), "PICTURES": "40", "QUESTIONS": "4",
        "STAGE1_STEPS": "2", "STAGE2_STEPS": "2", "BASELINE": "", "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(REPOSITORY / "scripts/quickstart.sh")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.skipif(
    Path(sys.prefix) != REPOSITORY / ".venv",
    reason="quickstart.sh works in .venv; scripts/test.sh runs the tests there",
)
def test_quickstart(tmp_path: Path) -> None:
    first = quickstart(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    for expected in ("color", "yesno", "average", "visual tokens", "17", "s/step, stage 2", "One question about"):
        assert expected in first.stdout
    lines = first.stdout.strip().splitlines()
    command = next(line for line in lines if ".venv/bin/python -m llava.serve.cli --model-path" in line)
    assert lines[-1].endswith("bash scripts/demo.sh")
    second = quickstart(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "stage 1" not in second.stdout.replace("s/step, stage 1", "")
    assert "average" in second.stdout

    chat = subprocess.run(
        command.strip().split(), cwd=REPOSITORY, input="What color is the shape on the left?\n\n",
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert chat.returncode == 0, chat.stderr
    assert "exit..." in chat.stdout
