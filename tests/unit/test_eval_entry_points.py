"""Scorers and converters start by path from any folder, as modules, and without loading torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCORERS = sorted(path.stem for path in (REPOSITORY / "llava/eval").glob("eval_*.py") if "review" not in path.stem)
CONVERTERS = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "scripts").glob("convert_*.py")
    if "base_prompt" not in path.stem  # a library beside convert_sqa_to_llava.py
)


@pytest.mark.parametrize("script", [*(f"llava/eval/{name}.py" for name in SCORERS), *CONVERTERS])
def test_by_path(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / script), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")


def test_no_scorer_loads_torch() -> None:
    modules = [f"llava.eval.{name}" for name in [*SCORERS, "m4c_evaluator", "score_file"]]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    script = str(REPOSITORY / "llava/eval/eval_gqa.py")
    command = [sys.executable, script, "--question-file", "q.json", "--result-file", "a.jsonl"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: [Errno 2] No such file or directory: 'q.json'\n"
