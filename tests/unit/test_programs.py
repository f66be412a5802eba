"""Every program answers --help at once, by path from any folder: flags are parsed before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDERS = ("llava/eval", "llava/serve", "llava/tools", "llava/model", "scripts")
PROGRAMS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in FOLDERS
    for path in (REPOSITORY / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
MODULES = [
    "patches.graft",
    *(f"playground.{name}" for name in ("build_bases", "connector_table", "elastic_study", "make_benchmarks")),
    *(f"playground.{name}" for name in ("make_data", "score")),
]
HEAVY = ["torch", "transformers", "pandas", "openai", "matplotlib", "gradio", "fastapi", "httpx"]


def run(code: str, folder: Path) -> None:
    code = (
        f"import runpy, sys\n{code}\n"
        f"finally: print('loaded', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "loaded []\n")
    assert result.stdout.startswith("usage: ")


def test_the_list_is_complete() -> None:
    """The names that LLaVA's users start, one of each room."""
    wanted = {
        "llava/eval/eval_pope.py",
        "llava/eval/model_vqa_loader.py",
        "llava/eval/score.py",
        "llava/model/apply_delta.py",
        "llava/serve/cli.py",
        "llava/serve/model_worker.py",
        "llava/tools/visual_anchors.py",
        "scripts/convert_vqav2_for_submission.py",
        "scripts/merge_lora_weights.py",
    }
    assert wanted <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_by_path(program: str, tmp_path: Path) -> None:
    path = str(REPOSITORY / program)
    folder = path.rpartition("/")[0]
    run(
        f"sys.argv, sys.path[0] = [{path!r}, '--help'], {folder!r}\ntry: runpy.run_path({path!r}, run_name='__main__')",
        tmp_path,
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_of_modules(module: str) -> None:
    run(f"sys.argv = ['program', '--help']\ntry: runpy.run_module({module!r}, run_name='__main__')", REPOSITORY)
