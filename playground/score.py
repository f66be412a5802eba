"""Accuracy by question kind, beside the same model given a blank image: `python -m playground.score MODEL...`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .world.language import CATEGORIES

QUESTIONS = {"picture": "eval_questions", "blank": "eval_questions_blank"}


def accuracies(questions: Path, answers: Path) -> dict[str, float]:
    """Share of exactly right answers per category, in percent.

    Raises:
        ValueError: an answer is missing, by the id of its question.
    """
    asked = {row["question_id"]: row for row in _read_lines(questions)}
    given = {row["question_id"]: row["text"] for row in _read_lines(answers)}
    missing = asked.keys() - given.keys()
    if missing:
        raise ValueError(f"{answers} lacks {len(missing)} answers, for example to question {min(missing)}")
    right: dict[str, list[bool]] = {}
    for question_id, row in asked.items():
        right.setdefault(row["category"], []).append(_normal(given[question_id]) == _normal(row["answer"]))
    return {category: 100 * sum(hits) / len(hits) for category, hits in right.items()}


def training_facts(model: Path) -> dict[str, str]:
    """Visual tokens and seconds per step of both stages, from what the training runs wrote."""
    config = json.loads((model / "config.json").read_text())
    tokens = 0 if config["mm_projector_type"] == "vlora" else config.get("mm_num_visual_tokens")
    tower = json.loads((Path(config["mm_vision_tower"]) / "config.json").read_text())
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    facts = {"visual tokens": str(patches if tokens is None else tokens)}
    for stage, folder in (("stage 1", model.with_name(f"{model.name}-pretrain")), ("stage 2", model)):
        state = folder / "trainer_state.json"
        if state.exists():
            last = json.loads(state.read_text())["log_history"][-1]
            facts[f"s/step, {stage}"] = f"{1 / last['train_steps_per_second']:.2f}"
    return facts


def table(data: Path, models: list[Path]) -> str:
    """One column per model: its scores on the images and on the blank one."""
    rows: dict[str, list[str]] = {name: [] for name in (*CATEGORIES, "average")}
    facts: dict[str, list[str]] = {}
    for model in models:
        scores = {
            name: accuracies(data / f"{stem}.jsonl", model / f"{stem}.answers.jsonl")
            for name, stem in QUESTIONS.items()
        }
        for result in scores.values():
            result["average"] = sum(result.values()) / len(result)
        for name, cells in rows.items():
            cells.append(f"{scores['picture'][name]:5.1f} ({scores['blank'][name]:4.1f})")
        for name, value in training_facts(model).items():
            facts.setdefault(name, []).append(value)
    header = ["% right (blank image)", *(model.name for model in models)]
    lines = [header, *([name, *cells] for name, cells in (rows | facts).items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths)))
                     for line in lines)  # fmt: skip


def _normal(text: str) -> str:
    return text.strip().rstrip(".").lower()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m playground.score", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="model folders that hold the answers files")
    parser.add_argument("--data", type=Path, default=Path("playground/data/shapes"))
    args = parser.parse_args(argv)
    sys.stdout.write(table(args.data, args.models) + "\n")


if __name__ == "__main__":
    main()
