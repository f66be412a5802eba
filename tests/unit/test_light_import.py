"""The ground floor imports in a moment: the controller and the command line must start without torch."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

MODULES = ["llava.constants", "llava.conversation", "llava.mm_utils", "llava.utils", "llava.chat", "llava.files"]
# Those of a deployment that runs no model; starting them needs the `serve` extra, importing them does not.
SERVERS = [
    "llava.serve.controller",
    "llava.serve.control.state",
    "llava.serve.register_worker",
    "llava.serve.access",
    "llava.serve.test_message",
    "llava.serve.wire",
    "llava.serve.worker.base",
]
HEAVY = ["torch", "transformers", "requests", "gradio", "tokenizers", "numpy"]


def test_ground_floor_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(MODULES)}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def run(code: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_servers_load_no_model_library(tmp_path: Path) -> None:
    """Nor do they open a log file or take over the output when they are imported."""
    unwanted = ["torch", "transformers", "gradio", "fastapi", "tokenizers"]
    code = (
        f"import sys; before = sys.stdout, sys.stderr; import {', '.join(SERVERS)}; "
        f"print([m for m in {unwanted!r} if m in sys.modules], before == (sys.stdout, sys.stderr))"
    )
    assert run(code, tmp_path) == "[] True"
    assert list(tmp_path.iterdir()) == []


def test_controller_runs_without_torch(tmp_path: Path) -> None:
    """The application too, which `app` builds when it is first asked for."""
    code = (
        "import sys; from llava.serve import controller; app = controller.app; "
        "print(type(app).__name__, app is controller.app, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert run(code, tmp_path) == "FastAPI True []"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from llava.serve import controller\n"
        "sys.argv = ['controller']\n"
        "from llava.program import run_program\n"
        "try: run_program(controller.main)\n"
        "except SystemExit as end: print(end)"
    )
    assert run(code, tmp_path) == "error: fastapi is needed for this and not installed: pip install 'llava[serve]'"
