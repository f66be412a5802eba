"""GQA accuracy, by the rules of the benchmark's own scorer: the prediction must equal the answer.

Protocol: https://cs.stanford.edu/people/dorarad/gqa/evaluate.html (standard accuracy over the balanced questions).
Questions whose structural type is `query` are open, all others binary. A missing prediction, which the official scorer
refuses, is wrong here and told. Consistency, validity, plausibility and grounding need files that are not public for
test-dev and are not computed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, Answer, match_answers, note
from llava.eval.scoring.json_files import read_json_object, read_rows, require_fields, require_rows
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import RequestError, run_program

Question = Mapping[str, Any]


@dataclass(frozen=True)
class GqaResult:
    """
    Attributes:
        right: question id -> its prediction is right.
        kinds: `binary`, `open` -> accuracy in percent.
        structural, semantic: type -> accuracy in percent; empty where the questions have no types.
    """

    right: dict[str, bool]
    kinds: dict[str, float]
    structural: dict[str, float]
    semantic: dict[str, float]

    @property
    def accuracy(self) -> float:
        """In percent."""
        return percent(self.right.values())

    def lines(self) -> list[str]:
        """As they are printed."""
        return [
            *(f"{kind.capitalize()}: {accuracy:.2f}%" for kind, accuracy in self.kinds.items()),
            f"Accuracy: {self.accuracy:.2f}%",
            *table("Accuracy / structural type", self.structural),
            *table("Accuracy / semantic type", self.semantic),
        ]


def as_predictions(answers: Sequence[Answer]) -> list[dict[str, str]]:
    """Answers of the generator as GQA's scorer reads them: lower case, without periods at the end."""
    return [
        {"questionId": answer["question_id"], "prediction": answer["text"].rstrip(".").lower()} for answer in answers
    ]


def score_predictions(questions: Mapping[str, Question], predictions: Mapping[str, str]) -> GqaResult:
    """Compare predictions with answers, exactly; a question without a prediction is wrong.

    Args:
        questions: id -> question with `answer` and perhaps `types`.
        predictions: id -> prediction.
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


def read_questions(path: str) -> dict[str, Question]:
    """The balanced questions of a file such as `testdev_balanced_questions.json`.

    Raises:
        RequestError: not a question file of GQA.
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question-file", type=str, required=True, help="testdev_balanced_questions.json")
    parser.add_argument(
        "--result-file",
        type=str,
        required=True,
        help="merged answers (JSON lines) or predictions of convert_gqa_for_eval.py (JSON)",
    )
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    questions = read_questions(args.question_file)
    rows = read_rows(args.result_file)
    if rows and "questionId" in rows[0]:
        require_rows(rows, args.result_file, {"questionId": str | int, "prediction": str})
        predictions = rows
    else:
        require_rows(rows, args.result_file, ANSWER_FIELDS)
        predictions = as_predictions(rows)
    by_id, coverage = match_answers(questions, predictions, args.result_file, id_field="questionId")
    result = score_predictions(questions, {name: entry["prediction"] for name, entry in by_id.items()})
    print("\n".join(result.lines()))
    for line in coverage.warnings("count as wrong"):
        note(line)
    write_score(
        args.score_file,
        "GQA",
        experiment_name(args.result_file, args.experiment),
        "mean",
        [item(name, int(right)) for name, right in result.right.items()],
        details={"accuracy": result.accuracy, **result.kinds, "structural": result.structural},
        expected=coverage.expected,
        answered=coverage.answered,
        answers=rows,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
