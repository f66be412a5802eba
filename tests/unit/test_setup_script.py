"""scripts/lib/setup.sh: what it says when the machine lacks something, and that a second call does nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PYTHON_STUB = """#!/bin/bash
case "$*" in
    --version) echo "Python {version}";;
    *version_info*) exit {too_old};;
    *venv*) mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python"; cp "$0" "${{@: -1}}/bin/pip";;
    *install*) echo "{install_says}"; exit {install_exits};;
esac
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that setting up reads, in an empty repository, with a stub for the interpreter and none for uv."""
    (tmp_path / "scripts/lib").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("requirements.lock", "setup.py", "pyproject.toml", "scripts/lib/setup.sh"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def stub(copy: Path, name: str, text: str) -> None:
    path = copy / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def python_stub(copy: Path, version: str = "3.11.0", too_old: int = 0, install_says: str = "", install_exits: int = 0):
    text = PYTHON_STUB.format(version=version, too_old=too_old, install_says=install_says, install_exits=install_exits)
    stub(copy, "python3", text)


def set_up(copy: Path) -> subprocess.CompletedProcess:
    command = f'. "{copy}/scripts/lib/setup.sh"; ensure_venv quant; echo finished'
    environment = {"PATH": f"{copy}/bin:/usr/bin:/bin", "HOME": str(copy)}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)


def test_sets_up_once(copy: Path) -> None:
    python_stub(copy)
    first, second = set_up(copy), set_up(copy)
    assert first.returncode == second.returncode == 0, first.stderr
    assert "Installing" in first.stdout and "Installed" in first.stdout
    assert second.stdout == "finished\n"
    with (copy / "requirements.lock").open("a") as lock:  # a new lock file is installed
        lock.write("# changed\n")
    assert "Installing" in set_up(copy).stdout


@pytest.mark.parametrize(
    "says, message",
    [
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "the disk is full"),
        ("Failed to establish a new connection: [Errno 111] Connection refused", "registry cannot be reached"),
        ("something else", "the installation failed"),
    ],
)
def test_failed_installations_are_explained(says: str, message: str, copy: Path) -> None:
    python_stub(copy, install_says=says, install_exits=1)
    result = set_up(copy)
    assert result.returncode == 1
    assert message in result.stderr and says in result.stderr
    assert "finished" not in result.stdout
    python_stub(copy)
    shutil.copy(copy / "bin/python3", copy / ".venv/bin/python")
    assert set_up(copy).returncode == 0, "a failed installation must not count as done"


def test_old_python(copy: Path) -> None:
    python_stub(copy, version="3.8.1", too_old=1)
    assert "Python 3.8.1 is too old: Python 3.10 or newer" in set_up(copy).stderr


def test_no_python(copy: Path) -> None:
    result = subprocess.run(
        ["bash", "-c", f'PYTHON=nopython; . "{copy}/scripts/lib/setup.sh"; ensure_venv quant'],
        capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False,
    )  # fmt: skip
    assert "no nopython here" in result.stderr


def test_full_disk(copy: Path) -> None:
    python_stub(copy)
    stub(copy, "df", "#!/bin/bash\necho header\necho /dev/x 100 90 10 90% /\n")
    result = set_up(copy)
    assert "10 MB are free" in result.stderr
    assert result.returncode == 1
