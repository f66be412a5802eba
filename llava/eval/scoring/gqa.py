"""GQA: accuracy of exact matches, by kind and type of question.

Protocol: https://cs.stanford.edu/people/dorarad/gqa/evaluate.html (standard accuracy over the balanced questions). A
question whose structural type is `query` is open, any other is binary. A question without a prediction, which the
official scorer refuses, counts as wrong, with a note. Consistency, validity, plausibility and grounding need files that
are not public for test-dev, and are not computed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, Answer, match_answers
from llava.eval.scoring.json_files import read_json_object, read_rows, require_fields, require_rows
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

Question = Mapping[str, Any]


@dataclass(frozen=True)
class GqaResult:
    """Accuracies of a set of predictions.

    Attributes:
        right: question id -> whether its prediction is right.
        kinds: "binary" and "open" -> accuracy in percent.
        structural, semantic: type -> accuracy in percent; empty if the questions have no types.
    """

    right: dict[str, bool]
    kinds: dict[str, float]
    structural: dict[str, float]
    semantic: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Accuracy over all questions, in percent."""
        return percent(self.right.values())

    def lines(self) -> list[str]:
        return [
            *(f"{kind.capitalize()}: {accuracy:.2f}%" for kind, accuracy in self.kinds.items()),
            f"Accuracy: {self.accuracy:.2f}%",
            *table("Accuracy / structural type", self.structural),
            *table("Accuracy / semantic type", self.semantic),
        ]


def read_questions(path: str) -> dict[str, Question]:
    """Read the balanced questions of a file such as `testdev_balanced_questions.json`.

    Raises:
        RequestError: the file is not a question file of GQA.
    """
    questions = read_json_object(path)
    for name, question in questions.items():
        place = f"{path}, question {name}"
        require_fields(question, place, {"answer": str})
        if question.get("types"):
            require_fields(question["types"], place, {"structural": str, "semantic": str})
    balanced = {name: question for name, question in questions.items() if question.get("isBalanced", True)}
    if not balanced:
        raise RequestError(f"{path} holds no balanced questions, and only these are scored")
    return balanced


def as_predictions(answers: Sequence[Answer]) -> list[dict[str, str]]:
    """Convert answers to the format of GQA's own scorer: lower case, without periods at the end."""
    return [
        {"questionId": answer["question_id"], "prediction": answer["text"].rstrip(".").lower()} for answer in answers
    ]


def score_predictions(questions: Mapping[str, Question], predictions: Mapping[str, str]) -> GqaResult:
    """Compare predictions with answers, exactly.

    Args:
        questions: id -> question with `answer` and optionally `types`.
        predictions: id -> prediction; a question without one counts as wrong.
    """
    right = {name: predictions.get(name) == question["answer"] for name, question in questions.items()}
    types = {name: question["types"] for name, question in questions.items() if question.get("types")}
    kinds = {name: "open" if kind["structural"] == "query" else "binary" for name, kind in types.items()}
    return GqaResult(
        right,
        kinds=by_group((kinds[name], right[name]) for name in kinds),
        structural=by_group((kind["structural"], right[name]) for name, kind in types.items()),
        semantic=by_group((kind["semantic"], right[name]) for name, kind in types.items()),
    )


def score(question_file: str, result_file: str) -> Score:
    """Score answers, or predictions made by convert_gqa_for_eval.py; unusable input raises RequestError."""
    questions = read_questions(question_file)
    rows = read_rows(result_file)
    if rows and "questionId" in rows[0]:
        require_rows(rows, result_file, {"questionId": str | int, "prediction": str})
        predictions = rows
    else:
        require_rows(rows, result_file, ANSWER_FIELDS)
        predictions = as_predictions(rows)
    by_id, coverage = match_answers(questions, predictions, result_file, id_field="questionId")
    result = score_predictions(questions, {name: entry["prediction"] for name, entry in by_id.items()})
    return Score(
        "GQA",
        result_file,
        "mean",
        [item(name, int(right)) for name, right in result.right.items()],
        details={"accuracy": result.accuracy, **result.kinds, "structural": result.structural},
        expected=coverage.expected,
        answered=coverage.answered,
        lines=result.lines(),
        notes=coverage.warnings("count as wrong"),
        answers=rows,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question-file", required=True, help="testdev_balanced_questions.json")
    parser.add_argument(
        "--result-file",
        required=True,
        help="merged answers (JSON lines) or predictions of convert_gqa_for_eval.py (JSON)",
    )


BENCHMARK = Benchmark(__doc__, _add_arguments, lambda args: score(args.question_file, args.result_file))
