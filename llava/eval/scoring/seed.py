"""SEED-Bench: accuracy per question type and for images and videos, and the submission file.

A reply is right if it equals the letter of the answer. Every question is submitted, unanswered ones with an empty
prediction.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import percent
from llava.eval.scoring.answers import ANSWER_FIELDS, Answer, match_answers, some
from llava.eval.scoring.json_files import read_json_lines, read_json_object, require_rows, write_json_lines
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError


@dataclass(frozen=True)
class SeedResult:
    """Accuracies of a set of answers.

    Attributes:
        right: question key -> whether its answer is right, in the order of the annotation.
        types: question type -> accuracy in percent, in the order of the types' ids.
        kinds: "image" and "video" -> accuracy in percent.
    """

    right: dict[int | str, bool]
    types: dict[str, float]
    kinds: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Accuracy over all questions, in percent."""
        return percent(self.right.values())

    def lines(self) -> list[str]:
        """Return the lines that upstream prints."""
        return [
            *(f"{name}: {accuracy:.2f}%" for name, accuracy in self.types.items()),
            f"Total accuracy: {self.accuracy:.2f}%",
            *(f"{kind} accuracy: {accuracy:.2f}%" for kind, accuracy in self.kinds.items()),
        ]


def question_key(question_id: Any) -> int | str:
    """Return the form in which ids are compared: an integer if the id is one."""
    return int(question_id) if re.fullmatch("-?[0-9]{1,4000}", str(question_id)) else question_id


def read_annotation(path: str) -> dict[str, Any]:
    """Read SEED-Bench's annotation file.

    Raises:
        RequestError: it is another file.
    """
    annotation = read_json_object(path, {"questions": list, "question_type": dict})
    if not annotation["questions"]:
        raise RequestError(f"{path} holds no questions")
    fields = {"question_id": str | int, "question_type_id": int, "data_type": str, "answer": str}
    require_rows(annotation["questions"], path, fields)
    types = [number for number in annotation["question_type"].values() if isinstance(number, int)]
    unknown = {question["question_type_id"] for question in annotation["questions"]}.difference(types)
    if unknown:
        raise RequestError(f"{path}: 'question_type' has no name for question_type_id {some(sorted(unknown))}")
    return annotation


def score_answers(annotation: Mapping[str, Any], answers: Mapping[int | str, Answer]) -> SeedResult:
    """Compare replies with the answers' letters, exactly.

    Args:
        answers: question key -> answer; a question without one counts as wrong.
    """
    right: dict[int | str, bool] = {}
    by_type: dict[int, list[bool]] = {}
    by_kind: dict[str, list[bool]] = {}
    for question in annotation["questions"]:
        key = question_key(question["question_id"])
        right[key] = key in answers and answers[key]["text"] == question["answer"]
        by_type.setdefault(question["question_type_id"], []).append(right[key])
        by_kind.setdefault(question["data_type"], []).append(right[key])
    names = sorted((type_id, name) for name, type_id in annotation["question_type"].items() if type_id in by_type)
    return SeedResult(
        right,
        types={name: percent(by_type[type_id]) for type_id, name in names},
        kinds={kind: percent(by_kind[kind]) for kind in ("image", "video") if kind in by_kind},
    )


def score(annotation_file: str, result_file: str, result_upload_file: str) -> Score:
    """Score answers to SEED-Bench, and write the submission file; unusable input raises RequestError."""
    annotation = read_annotation(annotation_file)
    answers = read_json_lines(result_file, ANSWER_FIELDS)
    ids = [question["question_id"] for question in annotation["questions"]]
    by_id, coverage = match_answers(ids, answers, result_file, key=question_key)
    result = score_answers(annotation, by_id)
    empty = {"text": ""}
    write_json_lines(
        result_upload_file,
        [{"question_id": name, "prediction": by_id.get(question_key(name), empty)["text"]} for name in ids],
    )
    groups = {question_key(question["question_id"]): question["data_type"] for question in annotation["questions"]}
    return Score(
        "SEED",
        result_file,
        "mean",
        [item(name, int(right), groups[name]) for name, right in result.right.items()],
        details={"accuracy": result.accuracy, **result.kinds, "types": result.types},
        expected=coverage.expected,
        answered=coverage.answered,
        lines=result.lines(),
        notes=coverage.warnings("count as wrong, with an empty prediction in the submission file"),
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--result-upload-file", required=True, help="submission to write, JSON lines")


BENCHMARK = Benchmark(
    __doc__, _add_arguments, lambda args: score(args.annotation_file, args.result_file, args.result_upload_file)
)
