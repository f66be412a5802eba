"""Run the graft on a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from patches.graft import main

Graft = Callable[..., tuple[int, str]]


@pytest.fixture
def graft(capsys: pytest.CaptureFixture) -> Graft:
    """Run the program: exit status, and what it printed."""

    def run(path: Path, mode: str = "check") -> tuple[int, str]:
        status = main([str(path), f"--{mode}"])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run
