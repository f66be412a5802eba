"""POPE: does the model see objects that are not there?

Answers are paired with questions by id. Per category: accuracy, precision, recall, F1 and the ratio of yes; the
published figure is the mean F1 of the three categories. Questions without an answer are left out, as by upstream.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.answers import ANSWER_FIELDS, IncompleteError, match_answers
from llava.eval.scoring.json_files import read_json_lines
from llava.eval.scoring.metrics import compute
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

Record = Mapping[str, Any]
Pair = tuple[bool, bool]  # the reply means yes, the label is yes

_PREFIX, _SUFFIX = "coco_pope_", ".json"
_RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class PopeCounts:
    """Outcomes of one category; positive is yes. A rate without cases is 0, where upstream divides by zero."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def precision(self) -> float:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        return _ratio(self.tp + self.fp, self.tp + self.fp + self.tn + self.fn)

    def lines(self) -> list[str]:
        """Return the lines that upstream prints."""
        summary = (self.f1, self.accuracy, self.precision, self.recall, self.yes_ratio)
        return [
            "TP\tFP\tTN\tFN\t",
            f"{self.tp}\t{self.fp}\t{self.tn}\t{self.fn}",
            f"Accuracy: {self.accuracy}",
            f"Precision: {self.precision}",
            f"Recall: {self.recall}",
            f"F1 score: {self.f1}",
            f"Yes ratio: {self.yes_ratio}",
            ", ".join(f"{value:.3f}" for value in summary),
        ]


def says_yes(text: str) -> bool:
    """Return True if the first sentence of a reply contains none of the words No, no, not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


def count_outcomes(pairs: Sequence[Pair]) -> PopeCounts:
    """Count each combination of reply and label."""
    return PopeCounts(
        tp=sum(said and right for said, right in pairs),
        fp=sum(said and not right for said, right in pairs),
        tn=sum(not said and not right for said, right in pairs),
        fn=sum(not said and right for said, right in pairs),
    )


def labels_of_questions(questions: Sequence[Record], labels: Sequence[Record], place: str) -> dict[str, bool]:
    """Return question id -> whether its label is yes.

    Upstream's question file and annotations number their questions independently, and are paired by order. If both use
    the same ids, they are paired by id.

    Args:
        questions: questions of one category, with `question_id`.
        labels: labels of that category, with `label` and optionally `question_id`.
        place: file of the labels, for error messages.

    Raises:
        RequestError: the two are not about the same questions.
    """
    for number, label in enumerate(labels, start=1):
        if label["label"] not in ("yes", "no"):
            raise RequestError(f"{place}, line {number}: the label is {label['label']!r}; it must be 'yes' or 'no'")
    ids = [str(question["question_id"]) for question in questions]
    by_id = {str(label["question_id"]): label["label"] == "yes" for label in labels if "question_id" in label}
    if len(by_id) == len(labels) and set(by_id) == set(ids):
        return by_id
    if len(labels) != len(questions):
        raise RequestError(
            f"{place} has {len(labels)} labels, the question file {len(questions)} questions of this category: they "
            "are not of the same release of POPE"
        )
    return {name: label["label"] == "yes" for name, label in zip(ids, labels, strict=True)}


def eval_pope(answers: Sequence[Record], label_file: str) -> PopeCounts:
    """Print upstream's lines for one category.

    Answers and labels are paired by `question_id` if both use the same ids, else by order.

    Raises:
        RequestError: there are no answers, or not as many as labels.
    """
    labels = read_json_lines(label_file, ["label"])
    if not answers:
        raise RequestError(f"{label_file}: there are no answers for this category")
    numbered = [{"question_id": number} | dict(answer) for number, answer in enumerate(answers)]
    right = labels_of_questions(numbered, labels, label_file)
    counts = count_outcomes([(says_yes(answer["text"]), right[str(answer["question_id"])]) for answer in numbered])
    print("\n".join(counts.lines()))
    return counts


def read_labels(annotation_dir: str) -> dict[str, list[Record]]:
    """Return category -> labels, in alphabetical order.

    Raises:
        IncompleteError: the folder has another file, or none.
    """
    labels: dict[str, list[Record]] = {}
    for name in sorted(os.listdir(annotation_dir)):
        path = os.path.join(annotation_dir, name)
        if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
            raise IncompleteError(f"{path}: the folder may hold nothing but {_PREFIX}<category>{_SUFFIX} files")
        labels[name[len(_PREFIX) : -len(_SUFFIX)]] = read_json_lines(path, ["label"])
    if not labels:
        raise IncompleteError(f"{annotation_dir} holds no {_PREFIX}<category>{_SUFFIX} file")
    return labels


def score(annotation_dir: str, question_file: str, result_file: str) -> Score:
    """Score answers to POPE; unusable input raises RequestError."""
    questions = read_json_lines(question_file, {"question_id": str | int, "category": str})
    answers = read_json_lines(result_file, ANSWER_FIELDS)
    ids = [question["question_id"] for question in questions]
    if len(set(map(str, ids))) < len(ids):
        raise RequestError(f"{question_file}: a question_id occurs twice; its answers are ambiguous")
    by_id, coverage = match_answers(ids, answers, result_file)
    lines: list[str] = []
    items, details, expected = [], {}, 0
    for category, labels in read_labels(annotation_dir).items():
        asked = [question for question in questions if question["category"] == category]
        place = os.path.join(annotation_dir, f"{_PREFIX}{category}{_SUFFIX}")
        right = labels_of_questions(asked, labels, place)
        said = {name: says_yes(by_id[name]["text"]) for name in right if name in by_id}
        if not said:
            raise RequestError(f"{result_file} answers no question of the category {category!r} of {place}")
        counts = count_outcomes([(said[name], right[name]) for name in said])
        lines += [f"Category: {category}, # samples: {len(said)}", *counts.lines(), "=" * 36]
        expected += len(right)
        items += [item(f"{category}/{name}", [said[name], right[name]], category) for name in said]
        details[category] = {rate: getattr(counts, rate) for rate in _RATES}
    mean_f1 = compute("pope_f1", items)
    published = "the published figure is that of the three categories"
    return Score(
        "POPE",
        result_file,
        "pope_f1",
        items,
        details=details,
        expected=expected,
        answered=len(items),
        lines=lines,
        notes=[*coverage.warnings("are left out"), f"mean F1 of {', '.join(details)}: {mean_f1:.2f} ({published})"],
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-dir", required=True, help="folder of coco_pope_<category>.json")
    parser.add_argument("--question-file", required=True, help="questions with their category, JSON lines")
    parser.add_argument("--result-file", required=True, help="answers of the generator, JSON lines")


BENCHMARK = Benchmark(
    __doc__, _add_arguments, lambda args: score(args.annotation_dir, args.question_file, args.result_file)
)
