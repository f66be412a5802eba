"""Evaluation: `llava.eval.model_vqa_loader` one question at a time, upstream's way, against `--batch-size`.

    bash scripts/quickstart.sh           # makes the model and the questions that are the default here
    python scripts/bench/eval.py --markdown docs/benchmarks/eval.md

Every run is the real program in a process of its own; the batch sizes take turns, and medians over the rounds are
reported. Answers/s come from the times that `--record-run` writes: reading pictures, generating and writing, without
starting Python and loading the model. Answers that differ from those at batch 1 are counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import markdown_table, publish

PLAYGROUND = Path("playground/data/shapes")


def ask(args: argparse.Namespace, batch_size: int, folder: str) -> tuple[list[dict[str, Any]], float]:
    """One run of the program: its answers, and its seconds in all."""
    answers = Path(folder) / "answers.jsonl"
    flags = {
        "--model-path": args.model_path,
        "--question-file": args.question_file,
        "--image-folder": args.image_folder,
        "--answers-file": answers,
        "--conv-mode": args.conv_mode,
        "--temperature": 0,
        "--max_new_tokens": args.max_new_tokens,
        "--limit": args.limit,
        "--batch-size": batch_size,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, "-m", "llava.eval.model_vqa_loader", *words, "--record-run"]
    answers.unlink(missing_ok=True)
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"the generator failed:\n{result.stderr}")
    seconds = time.perf_counter() - start
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()], seconds


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over the rounds, per batch size; the first is what the others are compared with."""
    rates: dict[int, list[float]] = {size: [] for size in args.batch_sizes}
    walls: dict[int, list[float]] = {size: [] for size in args.batch_sizes}
    texts: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(args.rounds):
            for size in args.batch_sizes if round_number % 2 == 0 else reversed(args.batch_sizes):
                answers, wall = ask(args, size, folder)
                rates[size].append(len(answers) / sum(answer["metadata"]["seconds"] for answer in answers))
                walls[size].append(wall)
                texts[size] = [answer["text"] for answer in answers]
    reference = args.batch_sizes[0]
    return [
        {
            "batch_size": size,
            "answers": len(texts[size]),
            "answers_per_second": statistics.median(rates[size]),
            # Per round, because what slows the machine down in one of them slows both.
            "ratio": statistics.median(a / b for a, b in zip(rates[size], rates[reference], strict=True)),
            "seconds_in_all": statistics.median(walls[size]),
            "different_answers": sum(a != b for a, b in zip(texts[size], texts[reference], strict=True)),
        }
        for size in args.batch_sizes
    ]


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """The table, with a word on how to read it."""
    cells = [
        [
            str(row["batch_size"]),
            f"{row['answers_per_second']:,.1f}",
            f"{row['ratio']:.2f}x",
            str(row["different_answers"]),
            f"{row['seconds_in_all']:.1f}",
        ]
        for row in rows
    ]
    table = markdown_table(["batch size", "answers/s", "ratio", "different answers", "whole program, s"], cells)
    return (
        f"{rows[0]['answers']} questions about pictures; greedy, at most {args.max_new_tokens} new tokens; model "
        f"`{Path(args.model_path).name}`; medians of {args.rounds} rounds. *Different answers*: from those at batch "
        f"{rows[0]['batch_size']}. *Whole program*: Python's start and the loading of the model included.\n\n{table}"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line. Device and precision are the program's own choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="checkpoints/playground/llava-acformer")
    parser.add_argument("--question-file", default=str(PLAYGROUND / "eval_questions.jsonl"))
    parser.add_argument("--image-folder", default=str(PLAYGROUND))
    parser.add_argument("--conv-mode", default="vicuna_v1")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, default=600, help="questions")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--markdown", help="also write the report to this file")
    on_gpu = torch.cuda.is_available()
    parser.set_defaults(device="cuda" if on_gpu else "cpu", dtype="fp16" if on_gpu else "fp32")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = parse_arguments()
    rows = measure(args)
    publish(args, "Evaluation in batches", report(args, rows), {"batches": rows})


if __name__ == "__main__":
    main()
