"""Programs of evaluation keep upstream's flags; the list of scorers."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.eval.score import BENCHMARKS, main, overview
from llava.program import RequestError, run_program
from tests.conftest import REPOSITORY
from tests.support.scoring import Capture

GENERATORS = ["run_llava", *sorted(path.stem for path in (REPOSITORY / "llava/eval").glob("model_*.py"))]


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
    """The flags that upstream does not have change nothing by default."""
    module = importlib.import_module(f"llava.eval.{name}")
    required = ["--image-file", "x", "--query", "y"] if name == "run_llava" else []
    flags = vars(module.build_parser().parse_args(required))
    beyond = {"mm_num_visual_tokens": None, "mm_projector_type": None}
    if name != "run_llava":
        beyond |= {"batch_size": 1, "resume": False, "limit": None, "record_run": False}
    assert flags == UPSTREAM_FLAGS[name] | beyond


def test_score_lists_the_benchmarks(capsys: Capture) -> None:
    main([])
    output = capsys.readouterr().out
    assert output == f"{overview()}\n"
    assert [line.split()[0] for line in output.splitlines() if line.startswith("  ")] == list(BENCHMARKS)
    with pytest.raises(RequestError, match="unknown benchmark 'vqa2'; choose one of gqa, "):
        main(["vqa2"])
    with pytest.raises(SystemExit):
        main(["gqa", "--help"])
    assert capsys.readouterr().out.startswith("usage: python -m llava.eval.score gqa [-h] --question-file")


def test_scoring_never_loads_torch() -> None:
    rooms = ("scoring", "judging", "reporting")
    modules = [
        f"llava.eval.{room}.{path.stem}"
        for room in rooms
        for path in (REPOSITORY / "llava/eval" / room).glob("[!_]*.py")
    ]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "llava/eval/score.py"), "gqa", "--question-file", "q.json"]
    result = subprocess.run(
        [*command, "--result-file", "a.jsonl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: [Errno 2] No such file or directory: 'q.json'\n"


def test_user_errors_are_one_line(capsys: Capture) -> None:
    def fail() -> None:
        raise RequestError("do it otherwise")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run_program(fail)
    assert exit_.value.code == "error: do it otherwise"
    with pytest.raises(SystemExit) as exit_:
        run_program(stop)
    assert exit_.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"
