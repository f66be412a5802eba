"""The programs of the serving room answer `--help` quickly, as torch is imported after the flags are parsed."""

import subprocess
import sys

import pytest

PROGRAMS = [
    "cli",
    "controller",
    "gradio_web_server",
    "model_worker",
    "register_worker",
    "sglang_worker",
    "test_message",
]
HELP = """
import runpy, sys
sys.argv = ["program", "--help"]
try:
    runpy.run_module("llava.serve.PROGRAM", run_name="__main__")
except SystemExit as end:
    print(end.code, [name for name in ("torch", "transformers", "gradio", "fastapi", "httpx") if name in sys.modules])
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_heavy(program: str) -> None:
    command = [sys.executable, "-c", HELP.replace("PROGRAM", program)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: ")
    assert output.splitlines()[-1] == "0 []"
