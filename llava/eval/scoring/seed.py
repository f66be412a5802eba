"""SEED-Bench: accuracy by question type and by kind of data, and the file to submit (contract: eval.md 4.5)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.answers import Answer, some
from llava.eval.scoring.json_files import read_json_object, require_rows
from llava.program import RequestError


@dataclass(frozen=True)
class SeedResult:
    """
    Attributes:
        right: `id of a question (see question_key) -> its answer is right`, in the order of the annotation.
        types: name of a question type -> accuracy in percent, in the order of the types' ids.
        kinds: `image`, `video` -> accuracy in percent.
    """

    right: dict[int | str, bool]
    types: dict[str, float]
    kinds: dict[str, float]

    @property
    def accuracy(self) -> float:
        """In percent."""
        return _percent(list(self.right.values()))

    def lines(self) -> list[str]:
        """As upstream prints them."""
        return [
            *(f"{name}: {accuracy:.2f}%" for name, accuracy in self.types.items()),
            f"Total accuracy: {self.accuracy:.2f}%",
            *(f"{kind} accuracy: {accuracy:.2f}%" for kind, accuracy in self.kinds.items()),
        ]


def question_key(question_id: Any) -> int | str:
    """How ids are compared: as integers where they are ones."""
    return int(question_id) if re.fullmatch("-?[0-9]{1,4000}", str(question_id)) else question_id


def read_annotation(path: str) -> dict[str, Any]:
    """
    Raises:
        RequestError: not an annotation file of SEED-Bench.
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
    """A reply is right if it equals the answer's letter; a question without an answer is wrong.

    Args:
        answers: by `question_key`.
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
        types={name: _percent(by_type[type_id]) for type_id, name in names},
        kinds={kind: _percent(by_kind[kind]) for kind in ("image", "video") if kind in by_kind},
    )


def _percent(values: list[bool]) -> float:
    return sum(values) / len(values) * 100
