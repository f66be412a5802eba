"""Answers of the generators and the command line chat against upstream's recordings."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science, run_llava
from llava.serve import cli
from tests.conftest import REPOSITORY
from tests.support.recorded_runs import RUNS


def _names(target: str) -> list[str]:
    return [name for name, run in RUNS.items() if run["target"] == target and run["rc"] == 0]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _assert_same_answers(path: Path, recorded: Path) -> None:
    answers, expected = _read(path), _read(recorded)
    assert expected
    for answer in answers:
        assert len(answer["answer_id"]) == 22
        answer["answer_id"] = "MASKED"
    assert answers == expected
    assert [list(answer) for answer in answers] == [list(answer) for answer in expected]  # order of the fields


def _with_answers_file(argv: list[str], path: Path) -> list[str]:
    return [str(path) if before == "--answers-file" else flag for before, flag in zip(["", *argv], argv)]


def _program(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, **options)


GENERATORS = (model_vqa, model_vqa_loader, model_vqa_science, model_vqa_mmbench)


def _answer(module: ModuleType, argv: list[str], answers: Path, *more: str) -> None:
    flags = [*_with_answers_file(argv, answers), *more]
    module.eval_model(module.build_parser().parse_args(flags), num_workers=0)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in GENERATORS for name in _names(module.__name__)]
)
def test_generator(module: ModuleType, name: str, batch_size: int, llava_vectors: Path, tmp_path: Path) -> None:
    """In batches too: rows of different lengths, with and without an image, answer as one by one."""
    answers = tmp_path / "new folder" / "answers.jsonl"
    _answer(module, RUNS[name]["argv"], answers, "--batch-size", str(batch_size))
    _assert_same_answers(answers, llava_vectors / RUNS[name]["outputs"][0])


def test_a_chunk_that_the_questions_do_not_reach(llava_vectors: Path, tmp_path: Path) -> None:
    """Upstream fails here."""
    _answer(model_vqa, RUNS["vqa_chunk_out_of_range"]["argv"], tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == b""


def test_loader_as_a_module_with_worker_processes(llava_vectors: Path, tmp_path: Path) -> None:
    argv = _with_answers_file(RUNS["loader_mlp2x"]["argv"], tmp_path / "a.jsonl")
    result = _program("-m", "llava.eval.model_vqa_loader", *argv, cwd=llava_vectors)
    assert result.returncode == 0, result.stderr
    _assert_same_answers(tmp_path / "a.jsonl", llava_vectors / "eval/vqa/loader_mlp2x.jsonl")


@pytest.mark.parametrize("name", _names("llava.eval.run_llava"))
def test_run_llava(name: str, llava_vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_llava.eval_model(run_llava.build_parser().parse_args(RUNS[name]["argv"]))
    assert capsys.readouterr().out == RUNS[name]["stdout"]


def test_run_llava_takes_images_with_different_tilings(llava_vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upstream fails here."""
    run_llava.eval_model(run_llava.build_parser().parse_args(RUNS["run_llava_anyres_two_sizes"]["argv"]))
    assert capsys.readouterr().out.strip()


def test_run_llava_by_path(llava_vectors: Path) -> None:
    run = RUNS["run_llava"]
    result = _program(str(REPOSITORY / "llava/eval/run_llava.py"), *run["argv"], cwd=llava_vectors)
    assert result.returncode == 0, result.stderr
    assert result.stdout == run["stdout"]


def _without_special_tokens(recorded: str) -> str:
    """Remove `<s>` and `</s>` from replies in upstream's debug output: here they are kept without."""
    return recorded.replace("<s> ", "").replace("</s></s>", "</s>").replace("</s>'}", "'}")


def test_cli_debug_output(
    llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second reply may differ from the recorded one: upstream's prompt for it held `<s>` and two `</s>`."""
    run = RUNS["serve_cli"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(run["stdin"]))
    cli.main(cli.build_parser().parse_args(run["argv"]))
    output, recorded = capsys.readouterr().out, _without_special_tokens(run["stdout"])
    head = recorded.index("'outputs'", recorded.index("'outputs'") + 1)  # where the second reply is recorded
    turn = recorded.index("USER: ASSISTANT: ", 1)
    assert output[:turn] == recorded[:turn]  # first turn, reply included
    second_prompt = recorded[recorded.index("{'prompt'", turn) : head]
    assert second_prompt in output
    assert output.endswith("'} \n\nUSER: exit...\n")


def test_cli_at_the_end_of_the_input(llava_vectors: Path) -> None:
    run = RUNS["serve_cli_eof"]
    result = _program("-m", "llava.serve.cli", *run["argv"], cwd=llava_vectors, input=run["stdin"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == run["stdout"]
