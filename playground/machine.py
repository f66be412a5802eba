"""What a measured result must name: the kind of machine, and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def machine_kind() -> str:
    """Processor, cores and GPU, without the machine's name; for example `2 cores of Intel(R) Xeon(R) CPU`."""
    import torch

    kind = f"{os.cpu_count()} cores of {_processor()}"
    return f"{kind}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else kind


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the checked-out commit, with `+` if the code differs from it; `unknown` outside git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "llava", "playground") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()
