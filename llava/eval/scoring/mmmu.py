"""MMMU accuracy by discipline and subject, by the benchmark's rules except for its random choices.

Questions are in the form of the benchmark's `output.json` (https://github.com/MMMU-Benchmark/MMMU, `eval/README.md`): a
list of `id` (`validation_Electronics_28`), `question_type` (`multiple-choice` or other), `answer` (a text or a list),
`index2ans` (letter -> option, for multiple choice), and perhaps `response`; one file or a folder of them. The replies
are their `response`, or come from an answers file of the generator whose `question_id` is the `id`.

Where no option can be found in a reply, the benchmark's own tool draws one at random. Here it is wrong and told, so
that figures are lower by a quarter or so of the share of such replies, and the same in every run.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note, some
from llava.eval.scoring.json_files import read_json_lines, read_rows, require_fields
from llava.eval.scoring.mmmu_rules import open_is_right, parse_choice, parse_open
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import RequestError, run_program

DISCIPLINES: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}

Question = Mapping[str, Any]


@dataclass(frozen=True)
class MmmuResult:
    """
    Attributes:
        right: id of a question -> right.
        unparsable: multiple-choice questions whose reply names no option.
    """

    right: dict[str, bool]
    unparsable: list[str]

    @property
    def accuracy(self) -> float:
        """Over all questions, in percent."""
        return percent(self.right.values())

    def subjects(self) -> dict[str, float]:
        """In percent."""
        return by_group((subject_of(name), right) for name, right in self.right.items())

    def disciplines(self) -> dict[str, float]:
        """In percent; of unknown subjects "other"."""
        return by_group((_DISCIPLINE_OF.get(subject_of(name), "other"), right) for name, right in self.right.items())


def subject_of(question_id: str) -> str:
    """`validation_Art_Theory_3` -> `Art_Theory`"""
    return question_id.partition("_")[2].rpartition("_")[0]


def score_replies(questions: Sequence[Question], replies: Mapping[str, str]) -> MmmuResult:
    """
    Args:
        replies: id -> reply; a missing one is wrong.
    """
    right: dict[str, bool] = {}
    unparsable = []
    for question in questions:
        name, answers = question["id"], question["answer"]
        answers = answers if isinstance(answers, list) else [answers]
        if name not in replies:
            right[name] = False
        elif question["question_type"] == "multiple-choice":
            letter = parse_choice(replies[name], question["index2ans"])
            right[name] = letter in answers
            if letter is None:
                unparsable.append(name)
        else:
            right[name] = open_is_right([str(answer) for answer in answers], parse_open(replies[name]))
    return MmmuResult(right, unparsable)


def read_questions(path: str) -> list[Question]:
    """
    Raises:
        RequestError: no questions in the form of `output.json`.
    """
    files = sorted(str(file) for file in Path(path).rglob("output.json")) if os.path.isdir(path) else [path]
    questions: list[Question] = []
    for file in files:
        questions += read_rows(file, {"id": str, "question_type": str, "answer": str | list})
    if not questions:
        raise RequestError(f"{path} holds no questions; it should be an output.json of MMMU or a folder of them")
    for question in questions:
        if question["question_type"] == "multiple-choice":
            require_fields(question, f"{path}, {question['id']}", {"index2ans": dict[str, str]})
        if "response" in question:
            require_fields(question, f"{path}, {question['id']}", {"response": str})
        if not subject_of(question["id"]):
            raise RequestError(f"{path}: the id {question['id']!r} is not <split>_<subject>_<number>")
    names = [question["id"] for question in questions]
    if len(set(names)) < len(names):
        raise RequestError(f"{path}: {some(sorted({name for name in names if names.count(name) > 1}))} occurs twice")
    return questions


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", type=str, required=True, help="output.json, or a folder of them")
    parser.add_argument("--result-file", type=str, help="answers of the generator, JSON lines (default: `response`)")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    questions = read_questions(args.annotation_file)
    source = args.result_file or args.annotation_file
    if args.result_file is not None:
        answers = read_json_lines(args.result_file, ANSWER_FIELDS)
    else:
        answers = [
            {"question_id": question["id"], "text": question["response"]}
            for question in questions
            if "response" in question
        ]
    by_id, coverage = match_answers([question["id"] for question in questions], answers, source)
    result = score_replies(questions, {name: answer["text"] for name, answer in by_id.items()})
    disciplines, subjects = result.disciplines(), result.subjects()
    print(f"Accuracy: {result.accuracy:.2f}% ({len(questions)} questions)")
    print("\n".join([*table("Accuracy / discipline", disciplines), *table("Accuracy / subject", subjects)]))
    for line in coverage.warnings("count as wrong"):
        note(line)
    if result.unparsable:
        note(
            f"{len(result.unparsable)} replies name no option and count as wrong (the official tool draws one at "
            f"random): {some(result.unparsable)}"
        )
    write_score(
        args.score_file,
        "MMMU",
        experiment_name(source, args.experiment),
        "mean",
        [item(name, int(right), subject_of(name)) for name, right in result.right.items()],
        details={
            "accuracy": result.accuracy,
            "disciplines": disciplines,
            "subjects": subjects,
            "unparsable": len(result.unparsable),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        answers=answers,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
