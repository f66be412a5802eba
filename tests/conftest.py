"""Shared fixtures. Unit and contract tests need neither network nor GPU."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
VECTORS = Path(__file__).resolve().parent / "vectors"


@pytest.fixture
def llava_vectors(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The LLaVA vectors; the paths inside them are relative, so they become the working directory."""
    monkeypatch.chdir(VECTORS / "llava")
    return VECTORS / "llava"
