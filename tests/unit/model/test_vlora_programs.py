"""Chat, single question and evaluation take models that give weights by the same flags as any other."""

import io
import json
import sys
from pathlib import Path

import pytest

from llava.eval import model_vqa_loader, run_llava
from llava.serve import cli
from tests.support.training import run_training
from tests.support.vlora_models import FLAGS as VLORA
from tests.unit.model.test_acformer_vlora import FLAGS as BOTH


@pytest.mark.parametrize("flags", [VLORA, BOTH], ids=["vlora", "acformer_vlora"])
def test_chat_and_evaluation(
    flags: list[str],
    tmp_path: Path,
    llava_vectors: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, image = str(tmp_path / "llava-v1-weights"), "assets/images/img1.png"
    run_training(Path(path), "--version", "v1", "--data_path", "train/data.json", "--max_steps", "1", *flags)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nAnd what else?\n"))
    chat = ["--model-path", path, "--image-file", image, "--temperature", "0", "--max-new-tokens", "3"]
    cli.main(cli.build_parser().parse_args([*chat, "--device", "cpu"]))
    assert capsys.readouterr().out.count("ASSISTANT: ") == 2

    ask = ["--model-path", path, "--image-file", image, "--query", "What is it?", "--temperature", "0"]
    run_llava.eval_model(run_llava.build_parser().parse_args([*ask, "--max_new_tokens", "3"]))

    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    rows = [{"question_id": i, "image": "img1.png", "text": text} for i, text in enumerate(["What?", "Which colour?"])]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--model-path", path, "--image-folder", "assets/images", "--question-file", str(questions)]
    argv += ["--answers-file", str(answers), "--temperature", "0", "--max_new_tokens", "3"]
    model_vqa_loader.eval_model(model_vqa_loader.build_parser().parse_args(argv), num_workers=0)
    assert [json.loads(line)["question_id"] for line in answers.read_text().splitlines()] == [0, 1]
