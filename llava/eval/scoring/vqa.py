"""VQAv2 or VizWiz accuracy on a split with public answers; the benchmark is told from its annotation file.

VQAv2: `v2_mscoco_val2014_annotations.json` (`annotations`: `question_id`, `answers`, `question_type`, `answer_type`).
VizWiz: `val.json` (a list of `image`, `answers`, `answer_type`, `answerable`); its answers are found by picture, for
which answers of the generator need their question file.

Answers of the generator (JSON lines) are first brought into the form in which they are submitted, as by
`convert_vqav2_for_submission.py` and `convert_vizwiz_for_submission.py`; a submission (JSON list) is taken as it is.
A question without an answer is wrong and told.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answer_normalisation import normalise_answer
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import read_json, read_json_lines, read_rows, require_fields, require_rows
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.eval.scoring.vqa_accuracy import accuracies
from llava.program import RequestError, run_program


@dataclass(frozen=True)
class Annotations:
    """
    Attributes:
        benchmark: "VQAv2" or "VizWiz".
        id_field: what a submission names its entries by.
        people: id -> what the people answered.
        groups: name of a division (`answer type`, ...) -> id -> group.
    """

    benchmark: str
    id_field: str
    people: dict[str, list[str]]
    groups: dict[str, dict[str, str]]


def read_annotations(path: str) -> Annotations:
    """
    Raises:
        RequestError: neither VQAv2's nor VizWiz's annotations.
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
    answers: Sequence[Mapping[str, Any]], id_field: str, pictures: Mapping[str, str], place: str
) -> list[dict[str, str]]:
    """Answers of the generator in the form in which they are submitted.

    Args:
        pictures: question id -> picture, where `id_field` is "image".
        place: file of the answers, for the error.

    Raises:
        RequestError: the picture of an answer is unknown.
    """
    rows = []
    for answer in answers:
        name = str(answer["question_id"])
        if id_field == "image":
            if name not in pictures:
                raise RequestError(f"{place}: the picture of question {name} is not known; give its --question-file")
            name = pictures[name]
        rows.append({id_field: name, "answer": normalise_answer(answer["text"])})
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", type=str, required=True, help="VQAv2's or VizWiz's annotations, JSON")
    parser.add_argument("--result-file", type=str, required=True, help="answers (JSON lines) or a submission (JSON)")
    parser.add_argument("--question-file", type=str, help="VizWiz: question file that was answered, JSON lines")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    annotations = read_annotations(args.annotation_file)
    rows = read_rows(args.result_file)
    id_field = annotations.id_field
    submission: Sequence[Mapping[str, Any]] = rows
    if rows and "answer" not in rows[0]:
        require_rows(rows, args.result_file, ANSWER_FIELDS)
        fields = {"question_id": str | int, "image": str}
        questions = read_json_lines(args.question_file, fields) if args.question_file else []
        pictures = {str(question["question_id"]): question["image"] for question in questions}
        submission = as_submission(rows, id_field, pictures, args.result_file)
    require_rows(submission, args.result_file, {id_field: str | int, "answer": str})
    by_id, coverage = match_answers(annotations.people, submission, args.result_file, id_field=id_field)
    scores = accuracies({name: row["answer"] for name, row in by_id.items()}, annotations.people)
    overall = percent(scores.values())
    divisions = {
        name: by_group((group, scores[entry]) for entry, group in groups.items())
        for name, groups in annotations.groups.items()
    }
    print(f"Overall accuracy: {overall:.2f}%")
    for name, division in divisions.items():
        print("\n".join(table(f"Accuracy / {name}", division)) or f"Accuracy / {name}: not annotated")
    for line in coverage.warnings("count as wrong"):
        note(line)
    answer_types = annotations.groups["answer type"]
    write_score(
        args.score_file,
        annotations.benchmark,
        experiment_name(args.result_file, args.experiment),
        "mean",
        [item(name, score, answer_types.get(name, "all")) for name, score in scores.items()],
        details={"accuracy": overall, **divisions},
        expected=coverage.expected,
        answered=coverage.answered,
        answers=rows,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
