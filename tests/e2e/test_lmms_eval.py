"""lmms-eval's own `llava` model drives this package: a real run on a local task gives the scores of our own programs.

lmms-eval runs in .venv-lmms, an environment on top of the one that runs the tests. The first run creates it
(tests/lmms_eval/setup.sh, about 250 MB and 15 seconds).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from llava.chat import build_prompt
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval import model_vqa_loader
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from tests.conftest import REPOSITORY
from tests.contract.test_eval_suites import lmms_eval_loglikelihood, open_suite

pytestmark = pytest.mark.e2e

TASKS = REPOSITORY / "tests/lmms_eval"
ENVIRONMENT = REPOSITORY / ".venv-lmms"
COLORS = ["red", "green", "blue"]
WORDINGS = [
    "What color is it?",
    "Look at the picture and say what color the square has.\nAnswer the question using a single word or phrase.",
]
REGISTRY_OUT_OF_REACH = 3


@pytest.fixture(scope="module")
def python() -> str:
    """Return the interpreter that has lmms-eval."""
    result = subprocess.run(
        ["bash", str(TASKS / "setup.sh"), str(ENVIRONMENT)],
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode == REGISTRY_OUT_OF_REACH:
        pytest.skip(f"lmms-eval cannot be fetched here (bash tests/lmms_eval/setup.sh): {result.stderr}")
    assert result.returncode == 0, result.stderr
    return str(ENVIRONMENT / "bin/python")


def write_questions(folder: Path) -> list[dict[str, Any]]:
    """Write images of a colored square, in two sizes; every third expected answer is not the color of the square."""
    questions = []
    for number in range(12):
        color = COLORS[number % 3]
        pil_image = Image.new("RGB", (60 + 20 * (number % 2), 60), (90 + 10 * number,) * 3)
        ImageDraw.Draw(pil_image).rectangle((10 + number, 10, 40 + number, 45), fill=color)
        pil_image.save(folder / f"{number}.png")
        answer = COLORS[(number + 1) % 3] if number % 3 == 2 else color
        text = WORDINGS[number // 3 % 2]
        questions.append(
            {"question_id": number, "image": f"{number}.png", "text": text, "answer": answer, "choices": COLORS}
            | {"square": color}
        )
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "questions.jsonl").write_text(lines)
    return questions


def train(folder: Path, questions: list[dict[str, Any]]) -> str:
    """Train a checkpoint to name the colors so confidently that float16 and float32 agree; return its path."""
    torch.manual_seed(0)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        "checkpoints/llava-v1-tiny-mlp2x", None, "llava", device="cpu", dtype=torch.float32
    )
    model.config.mm_vision_tower = os.path.abspath(model.config.mm_vision_tower)
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    pil_images = [Image.open(folder / question["image"]).convert("RGB") for question in questions]
    images = process_images(pil_images, image_processor, model.config)
    rows, targets = [], []
    for question in questions:
        prompt = build_prompt(f"{DEFAULT_IMAGE_TOKEN}\n{question['text']}", "vicuna_v1")
        ids = tokenizer_image_token(prompt, tokenizer)
        reply = [*tokenizer(question["square"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append(torch.tensor(ids + reply))
        targets.append(torch.tensor([-100] * len(ids) + reply))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    for _ in range(60):
        loss = model(ids, attention_mask=ids.ne(0), labels=labels, images=images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02
    path = folder / "llava-colors"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def our_replies(folder: Path, path: str) -> list[str]:
    """Return the replies of our answer generator."""
    arguments = [
        "--model-path", path, "--question-file", str(folder / "questions.jsonl"), "--image-folder", str(folder),
        "--answers-file", str(folder / "ours.jsonl"), "--conv-mode", "vicuna_v1", "--temperature", "0",
    ]  # fmt: skip
    model_vqa_loader.eval_model(model_vqa_loader.build_parser().parse_args(arguments), num_workers=0)
    return [json.loads(line)["text"] for line in (folder / "ours.jsonl").read_text().splitlines()]


def our_choices(folder: Path, path: str, questions: list[dict[str, Any]]) -> list[str]:
    """Return the color with the smallest loss for each question."""
    suite = open_suite(path, dtype=torch.float32)
    choices = []
    for question in questions:
        pil_images = [Image.open(folder / question["image"]).convert("RGB")]
        losses = [lmms_eval_loglikelihood(suite, question["text"], pil_images, c)[1]["loss"] for c in COLORS]
        choices.append(COLORS[int(torch.stack(losses).argmin())])
    return choices


def run_lmms_eval(python: str, folder: Path, path: str, batch_size: int) -> tuple[dict[str, float], list[str]]:
    """Return the scores of both tasks, and the replies of the generating one in the order of the questions."""
    out = folder / f"out{batch_size}"
    result = subprocess.run(
        [
            python, "-m", "lmms_eval", "--model", "llava", "--model_args", f"pretrained={path},device_map=auto",
            "--device", "cpu", "--include_path", str(TASKS), "--tasks", "local_vqa,local_choice",
            "--batch_size", str(batch_size), "--log_samples", "--output_path", str(out),
        ],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = list(out.glob("*/*_results.json"))
    assert found, result.stderr[-4000:]  # lmms-eval ends with status 0 after an error too
    (results,) = found
    scores = json.loads(results.read_text())["results"]
    (samples,) = out.glob("*/*_samples_local_vqa.jsonl")
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    replies = {record["doc_id"]: record["filtered_resps"] for record in records}
    both = {"replies": scores["local_vqa"]["exact,none"], "choices": scores["local_choice"]["acc,none"]}
    return both, [replies[number] for number in sorted(replies)]


def test_lmms_eval_scores_as_we_do(python: str, tmp_path: Path, llava_vectors: Path) -> None:
    questions = write_questions(tmp_path)
    path = train(tmp_path, questions)
    replies, choices = our_replies(tmp_path, path), our_choices(tmp_path, path, questions)
    expected = {
        name: sum(said == question["answer"] for said, question in zip(ours, questions)) / len(questions)
        for name, ours in (("replies", replies), ("choices", choices))
    }
    assert 0 < expected["replies"] < 1
    scores, theirs = run_lmms_eval(python, tmp_path, path, batch_size=5)
    assert theirs == replies
    assert scores == pytest.approx(expected, abs=1e-9)
