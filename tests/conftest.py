"""Shared fixtures. Unit and contract tests need neither network nor GPU."""

import os
import signal
import threading
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell starts background jobs with SIGINT ignored, and a program cannot trap what it inherits ignored. Tests that
# interrupt programs need them to start as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
VECTORS = Path(__file__).resolve().parent / "vectors"


@pytest.fixture
def llava_vectors(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The LLaVA vectors; the paths inside them are relative, so they become the working directory."""
    monkeypatch.chdir(VECTORS / "llava")
    return VECTORS / "llava"


@pytest.fixture(scope="session", autouse=True)
def llava_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep no measured lengths of samples; programs that they start neither."""
    os.environ["LLAVA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
