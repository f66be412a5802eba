"""One result of the comparison: a connector trained with one seed, and its answers to the held-out questions."""

from __future__ import annotations

import logging
import os
import time
from datetime import date
from pathlib import Path

from llava.tools.machine import commit, machine_kind

from ..files import write_json
from ..score import QUESTIONS, accuracies
from .protocol import Evaluation, Folders, Protocol
from .training import as_command_line, train

logger = logging.getLogger(__name__)


def obtain_result(evaluation: Evaluation, protocol: Protocol, folders: Folders) -> None:
    """Train what is not trained yet, answer the questions, and write the result file atomically."""
    logging.basicConfig(level=logging.INFO)
    seconds = train(evaluation.run, protocol, folders)
    started = time.perf_counter()
    answers = answer_questions(evaluation, folders)
    seconds["answers"] = round(time.perf_counter() - started, 1)
    accuracy = accuracies(_question_file(evaluation, folders), answers)
    result = {
        "table": evaluation.table,
        "connector": evaluation.connector or evaluation.run.connector,
        "trained_as": evaluation.run.connector,
        "seed": evaluation.run.seed,
        "visual_tokens": count_visual_tokens(evaluation, folders),
        "accuracy": accuracy,
        "mean": sum(accuracy.values()) / len(accuracy),
        "seconds": seconds,
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine_kind(),
        "settings": evaluation.settings(protocol),
    }
    evaluation.result_file(folders).parent.mkdir(parents=True, exist_ok=True)
    write_json(evaluation.result_file(folders), result)


def _question_file(evaluation: Evaluation, folders: Folders) -> Path:
    return folders.data / f"{QUESTIONS['blank' if evaluation.table == 'blank' else 'picture']}.jsonl"


def answer_questions(evaluation: Evaluation, folders: Folders) -> Path:
    """`python -m llava.eval.model_vqa_loader` on the held-out questions, in this process. -> the answers file."""
    from llava.eval.model_vqa_loader import build_parser, eval_model

    logger.info("== %s", "answers" if evaluation.table == "trained" else f"answers, {evaluation.name}")
    answers = folders.runs / "answers" / f"{evaluation.name}.jsonl"
    answers.parent.mkdir(parents=True, exist_ok=True)
    flags = [
        *("--model-path", str(evaluation.run.stage2(folders))),
        *("--question-file", str(_question_file(evaluation, folders))),
        *("--image-folder", str(folders.data)),
        *("--answers-file", str(answers)),
        *("--temperature", "0", "--conv-mode", "vicuna_v1", "--max_new_tokens", "8"),
    ]
    eval_model(build_parser().parse_args(flags + as_command_line(evaluation.overrides())), num_workers=0)
    return answers


def count_visual_tokens(evaluation: Evaluation, folders: Folders) -> int:
    """The actual number of visual tokens of the opened model, which can differ from the requested one."""
    from llava.inference import inference_options
    from llava.model.builder import load_pretrained_model

    path = str(evaluation.run.stage2(folders))
    options = inference_options() | evaluation.overrides()
    return load_pretrained_model(path, None, os.path.basename(path), **options)[1].num_visual_tokens
