"""VQAv2 or VizWiz: accuracy on a split with public answers; the annotation file tells which benchmark it is.

VQAv2: `v2_mscoco_val2014_annotations.json` (`annotations`: `question_id`, `answers`, `question_type`, `answer_type`).
VizWiz: `val.json` (a list of `image`, `answers`, `answer_type`, `answerable`); answers of a generator need their
question file, because VizWiz identifies questions by image.

Answers of a generator (JSON lines) are first converted to the submission format, as by
`convert_vqav2_for_submission.py` and `convert_vizwiz_for_submission.py`; a submission (JSON list) is scored as it is. A
question without an answer counts as wrong, with a note.

Accuracy (https://visualqa.org/evaluation.html): see `human_accuracy`. Answers are compared without newlines and tabs
and, unless all people gave the same one, in the benchmark's normal form: punctuation, periods, number words, articles,
contractions and capital letters.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, human_accuracy, percent, table
from llava.eval.scoring.answer_normalisation import normalise_answer, normalise_words, remove_punctuation
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers
from llava.eval.scoring.json_files import read_json, read_json_lines, read_rows, require_fields, require_rows
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError


@dataclass(frozen=True)
class Annotations:
    """The human answers of a benchmark.

    Attributes:
        benchmark: "VQAv2" or "VizWiz".
        id_field: name of the id in a submission.
        people: id -> human answers.
        groups: name of a division (`answer type`, ...) -> id -> group.
    """

    benchmark: str
    id_field: str
    people: dict[str, list[str]]
    groups: dict[str, dict[str, str]]


def read_annotations(path: str) -> Annotations:
    """Read VQAv2's or VizWiz's annotations.

    Raises:
        RequestError: the file holds neither.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        benchmark, id_field, entries = "VQAv2", "question_id", content["annotations"]
        divisions = {"answer type": "answer_type", "question type": "question_type"}
    elif isinstance(content, list):
        benchmark, id_field, entries = "VizWiz", "image", content
        divisions = {"answer type": "answer_type", "answerable": "answerable"}
    else:
        raise RequestError(
            f"{path}: neither VQAv2's annotations (an object with the list 'annotations') nor VizWiz's (a list)"
        )
    if not entries:
        raise RequestError(f"{path} holds no annotations")
    require_rows(entries, path, {id_field: str | int})
    for number, entry in enumerate(entries, start=1):
        if not entry.get("answers"):
            raise RequestError(f"{path}, entry {number}: no 'answers'; only a split with public ones can be scored")
        require_fields(entry, f"{path}, entry {number}", {"answers": list})
        require_rows(entry["answers"], f"{path}, entry {number}, answers", {"answer": str})
    return Annotations(
        benchmark,
        id_field,
        people={str(entry[id_field]): [answer["answer"] for answer in entry["answers"]] for entry in entries},
        groups={
            name: {str(entry[id_field]): str(entry[field]) for entry in entries if field in entry}
            for name, field in divisions.items()
        },
    )


def as_submission(
    answers: Sequence[Mapping[str, Any]], id_field: str, images: Mapping[str, str], place: str
) -> list[dict[str, str]]:
    """Convert answers of a generator to the submission format.

    Args:
        images: question id -> image, needed if `id_field` is "image".
        place: file of the answers, for the error message.

    Raises:
        RequestError: the image of an answer is unknown.
    """
    rows = []
    for answer in answers:
        name = str(answer["question_id"])
        if id_field == "image":
            if name not in images:
                raise RequestError(f"{place}: the image of question {name} is unknown; give its --question-file")
            name = images[name]
        rows.append({id_field: name, "answer": normalise_answer(answer["text"])})
    return rows


def vqa_accuracy(prediction: str, people: Sequence[str]) -> float:
    """Return the accuracy of an answer, 0 to 1.

    Args:
        people: human answers, usually ten.
    """
    prediction, people = _plain(prediction), [_plain(answer) for answer in people]
    if len(set(people)) > 1:
        prediction, people = _normal(prediction), [_normal(answer) for answer in people]
    return human_accuracy(people.count(prediction), len(people))


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normal(text: str) -> str:
    return normalise_words(remove_punctuation(text))


def score(annotation_file: str, result_file: str, question_file: str | None = None) -> Score:
    """Score answers or a submission; unusable input raises RequestError."""
    annotations = read_annotations(annotation_file)
    rows = read_rows(result_file)
    id_field = annotations.id_field
    submission: Sequence[Mapping[str, Any]] = rows
    if rows and "answer" not in rows[0]:
        require_rows(rows, result_file, ANSWER_FIELDS)
        fields = {"question_id": str | int, "image": str}
        questions = read_json_lines(question_file, fields) if question_file else []
        images = {str(question["question_id"]): question["image"] for question in questions}
        submission = as_submission(rows, id_field, images, result_file)
    require_rows(submission, result_file, {id_field: str | int, "answer": str})
    by_id, coverage = match_answers(annotations.people, submission, result_file, id_field=id_field)
    scores = {
        name: vqa_accuracy(by_id[name]["answer"], people) if name in by_id else 0.0
        for name, people in annotations.people.items()
    }
    overall = percent(scores.values())
    divisions = {
        name: by_group((group, scores[entry]) for entry, group in groups.items())
        for name, groups in annotations.groups.items()
    }
    lines = [f"Overall accuracy: {overall:.2f}%"]
    for name, division in divisions.items():
        lines += table(f"Accuracy / {name}", division) or [f"Accuracy / {name}: not annotated"]
    answer_types = annotations.groups["answer type"]
    return Score(
        annotations.benchmark,
        result_file,
        "mean",
        [item(name, value, answer_types.get(name, "all")) for name, value in scores.items()],
        details={"accuracy": overall, **divisions},
        expected=coverage.expected,
        answered=coverage.answered,
        lines=lines,
        notes=coverage.warnings("count as wrong"),
        answers=rows,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="VQAv2's or VizWiz's annotations, JSON")
    parser.add_argument("--result-file", required=True, help="answers (JSON lines) or a submission (JSON)")
    parser.add_argument("--question-file", help="VizWiz: question file that was answered, JSON lines")


BENCHMARK = Benchmark(
    __doc__, _add_arguments, lambda args: score(args.annotation_file, args.result_file, args.question_file)
)
