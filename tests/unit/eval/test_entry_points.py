"""Generators, scorers and converters start by path from any folder, as modules, and without loading torch."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

SCORERS = sorted(path.stem for path in (REPOSITORY / "llava/eval").glob("eval_*.py") if "review" not in path.stem)
GENERATORS = sorted(
    path.stem for pattern in ("model_*.py", "run_llava.py") for path in (REPOSITORY / "llava/eval").glob(pattern)
)
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


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_find_the_package_by_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, because each takes seconds to start."""
    elsewhere = [place for place in sys.path if Path(place or ".").resolve() != REPOSITORY]
    monkeypatch.setattr(sys, "path", elsewhere)
    runpy.run_path(str(REPOSITORY / f"llava/eval/{name}.py"), run_name="by path")
    assert sys.path[0] == str(REPOSITORY)


def _upstream(question_file: str = "tables/question.jsonl", conv_mode: str = "llava_v1", **more: Any) -> dict[str, Any]:
    return {
        **{"model_path": "facebook/opt-350m", "model_base": None, "image_folder": "", "question_file": question_file},
        **{"answers_file": "answer.jsonl", "conv_mode": conv_mode, "num_chunks": 1, "chunk_idx": 0, "temperature": 0.2},
    } | more


DECODING = {"top_p": None, "num_beams": 1}
UPSTREAM_FLAGS: dict[str, dict[str, Any]] = {
    "model_vqa": _upstream(**DECODING),
    "model_vqa_loader": _upstream(**DECODING, max_new_tokens=128),
    "model_vqa_science": _upstream("tables/question.json", "llava_v0", answer_prompter=False, single_pred_prompt=False),
    "model_vqa_mmbench": _upstream(**DECODING, all_rounds=False, single_pred_prompt=False, lang="en"),
    "model_vqa_qbench": {
        **{"model_path": "facebook/opt-350m", "model_base": None, "lang": "en", "conv_mode": "llava_v1"},
        "image_folder": "./playground/data/qbench/images_llvisionqa",
        "questions_file": "./playground/data/qbench/llvisionqa_dev.json",
        "answers_file": "answer.jsonl",
    },
    "model_qa": {
        **{"model_name": "facebook/opt-350m", "question_file": "tables/question.jsonl", "answers_file": "answer.jsonl"},
    },
    "run_llava": {
        **{"model_path": "facebook/opt-350m", "model_base": None, "image_file": "x", "query": "y", "conv_mode": None},
        **{"sep": ",", "temperature": 0.2, "max_new_tokens": 512},
        **DECODING,
    },
}


@pytest.mark.parametrize("name", GENERATORS)
def test_flags_and_defaults_are_upstream_s(name: str) -> None:
    """Contract eval.md 1; what is beyond it changes nothing by default."""
    module = importlib.import_module(f"llava.eval.{name}")
    required = ["--image-file", "x", "--query", "y"] if name == "run_llava" else []
    flags = vars(module.build_parser().parse_args(required))
    beyond = {"mm_num_visual_tokens": None, "mm_projector_type": None}
    if name != "run_llava":
        beyond |= {"batch_size": 1, "resume": False, "limit": None, "record_run": False}
    assert flags == UPSTREAM_FLAGS[name] | beyond


def test_no_scorer_loads_torch() -> None:
    modules = [f"llava.eval.{name}" for name in [*SCORERS, "m4c_evaluator", "scoring.score_file"]]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    script = str(REPOSITORY / "llava/eval/eval_textvqa.py")
    command = [sys.executable, script, "--annotation-file", "q.json", "--result-file", "a.jsonl"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "a\n")
    assert result.stderr == "error: [Errno 2] No such file or directory: 'q.json'\n"
