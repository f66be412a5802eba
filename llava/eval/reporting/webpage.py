"""Data of a web page that compares models: questions, answers and reviews side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.scoring.json_files import Fields, read_json_lines
from llava.program import RequestError

Record = Mapping[str, Any]


def join(
    questions: Sequence[Record],
    answers: Mapping[str, Sequence[Record]],
    reviews: Mapping[str, Sequence[Record]],
) -> dict[str, Any]:
    """Return `{"questions": [...], "models": [...]}`; each question has the answer and the review of each model.

    Args:
        questions: rows of `question_id`, `text` and optionally `category`.
        answers: model -> rows of `question_id` and `text`.
        reviews: model -> rows of `question_id`, `content` and `tuple`; models may be missing.
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
    """Read the files `<prefix><model>.jsonl` of a folder, by model; none if the folder does not exist."""
    paths = sorted(folder.glob(f"{prefix}*.jsonl"))
    return {path.stem.removeprefix(prefix): read_json_lines(str(path), required) for path in paths}


def read_table(folder: str) -> dict[str, Any]:
    """Join the files of a folder: `question.jsonl`, `answer/answer_<model>.jsonl`, `review/review_<model>.jsonl`.

    Reviews are those of eval_gpt_review, with the model's answers second; they are optional.

    Raises:
        OSError: the questions are missing.
        RequestError: no model has answers, or a file has another format.
    """
    table = Path(folder).expanduser()
    answers = read_by_model(table / "answer", "answer_", {"question_id": str | int, "text": str})
    if not answers:
        raise RequestError(f"{table / 'answer'} holds no answer_<model>.jsonl; see --table")
    reviews = read_by_model(table / "review", "review_", {"question_id": str | int, "content": str, "tuple": list})
    questions = read_json_lines(str(table / "question.jsonl"), {"question_id": str | int, "text": str})
    return join(questions, answers, reviews)
