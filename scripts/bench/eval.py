"""Measure evaluation in batches: `llava.eval.model_vqa_loader` one question at a time, as upstream, and with
`--batch-size`.

    bash scripts/quickstart.sh           # makes the default model and questions
    python scripts/bench/eval.py --markdown docs/benchmarks/eval.md

Every run is the real program in its own process; the batch sizes alternate, and medians over the rounds are reported.
Answers/s are computed from the times that `--record-run` writes: reading images, generating and writing, without
starting Python and loading the model. Answers that differ from those at the first batch size are counted.
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

PLAYGROUND = Path("playground/data/shapes")


def ask(args: argparse.Namespace, batch_size: int, folder: str) -> tuple[list[dict[str, Any]], float]:
    """Run the program once; return its answers, and its seconds in all."""
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
    """Return medians over the rounds per batch size; the first size is the reference of the ratios."""
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
            # Per round, because a slow phase of the machine affects all runs of a round.
            "ratio": statistics.median(a / b for a, b in zip(rates[size], rates[reference], strict=True)),
            "seconds_in_all": statistics.median(walls[size]),
            "different_answers": sum(a != b for a, b in zip(texts[size], texts[reference], strict=True)),
        }
        for size in args.batch_sizes
    ]


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """Return the table, with a sentence on how to read it."""
    from common import markdown_table

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
        f"{rows[0]['answers']} questions about images; greedy, at most {args.max_new_tokens} new tokens; model "
        f"`{Path(args.model_path).name}`; medians of {args.rounds} rounds. *Different answers*: from those at batch "
        f"{rows[0]['batch_size']}. *Whole program*: Python's start and the loading of the model included.\n\n{table}"
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the flags; the program itself chooses device and precision."""
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
    return parser.parse_args()


def main() -> None:
    """Measure, and print or write the report."""
    args = parse_arguments()
    import torch  # after the flags: --help needs neither torch nor what imports it
    from common import publish

    on_gpu = torch.cuda.is_available()
    args.device, args.dtype = ("cuda", "fp16") if on_gpu else ("cpu", "fp32")
    rows = measure(args)
    publish(args, "Evaluation in batches", report(args, rows), {"batches": rows})


if __name__ == "__main__":
    main()
