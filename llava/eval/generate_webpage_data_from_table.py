"""Data of a web page that compares models: questions, answers and reviews side by side (contract: eval.md 4.8).

The folder `--table` holds `question.jsonl`, `answer/answer_<model>.jsonl` and, where there are any,
`review/review_<model>.jsonl` (from `eval_gpt_review`, the model's answers second).
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.scoring.json_files import Fields, read_json_lines, write_json
from llava.program import RequestError, run_program

Record = Mapping[str, Any]


def join(
    questions: Sequence[Record],
    answers: Mapping[str, Sequence[Record]],
    reviews: Mapping[str, Sequence[Record]],
) -> dict[str, Any]:
    """`{"questions": [...], "models": [...]}`; a question lists what each model answered and how that was reviewed.

    Args:
        questions: `question_id`, `text` and perhaps `category`.
        answers: by model, `question_id` and `text`.
        reviews: by model, `question_id`, `content` and `tuple`; models may be missing.
    """
    replies = {model: {row["question_id"]: row["text"] for row in rows} for model, rows in answers.items()}
    verdicts = {model: {row["question_id"]: row for row in rows} for model, rows in reviews.items()}
    joined = []
    for question in questions:
        key = question["question_id"]
        reviewed = {model: rows[key] for model, rows in verdicts.items() if key in rows}
        joined.append(
            {
                "id": key,
                "category": question.get("category"),
                "question": question["text"],
                "answers": {model: rows[key] for model, rows in replies.items() if key in rows},
                "evaluations": {model: row["content"] for model, row in reviewed.items()},
                "scores": {model: row["tuple"] for model, row in reviewed.items()},
            }
        )
    return {"questions": joined, "models": list(answers)}


def read_by_model(folder: Path, prefix: str, required: Fields) -> dict[str, list[dict[str, Any]]]:
    """The files `<prefix><model>.jsonl` of a folder; none where there is no such folder."""
    paths = sorted(folder.glob(f"{prefix}*.jsonl"))
    return {path.stem.removeprefix(prefix): read_json_lines(str(path), required) for path in paths}


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        OSError, RequestError: a file is missing, or no model has answers.
    """
    table = Path(args.table).expanduser()
    answers = read_by_model(table / "answer", "answer_", {"question_id": str | int, "text": str})
    if not answers:
        raise RequestError(f"{table / 'answer'} holds no answer_<model>.jsonl; see --table")
    reviews = read_by_model(table / "review", "review_", {"question_id": str | int, "content": str, "tuple": list})
    questions = read_json_lines(str(table / "question.jsonl"), {"question_id": str | int, "text": str})
    write_json(args.output, join(questions, answers, reviews), indent=2)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="table", help="folder of questions, answers and reviews")
    parser.add_argument("--output", default=os.path.join("webpage", "data.json"))
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
