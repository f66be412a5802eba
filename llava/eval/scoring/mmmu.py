"""MMMU: accuracy by discipline and subject, by the benchmark's rules except for its random choices.

Questions are in the format of the benchmark's `output.json` (https://github.com/MMMU-Benchmark/MMMU,
`eval/README.md`): a list of `id` (`validation_Electronics_28`), `question_type` (`multiple-choice` or other), `answer`
(a text or a list), `index2ans` (letter -> option, for multiple choice), and optionally `response`; one file or a folder
of them. The replies are their `response`, or come from an answers file whose `question_id` is the `id`.

Replies are read by the rules of the official `eval`, with two differences. If no option can be found in a reply, the
official tool draws one at random; here the reply counts as wrong, with a note, so that figures are lower by about a
quarter of the share of such replies, and reproducible. A reply that begins with a letter and `.`, `:` or `)`, which the
official rules leave to chance, gives that letter.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, some
from llava.eval.scoring.json_files import read_json_lines, read_rows, require_fields
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

DISCIPLINES: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}

_EDGES = ",.!?;:'"
_BEGINNING = re.compile(r"\(?([A-Z])[.:)]")
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_WITH_COMMAS = r"-? \b [0-9]{1,3} (?: , [0-9]{3} )+ \b"
_SCIENTIFIC = r"-? [0-9]+ (?: \. [0-9]+ )? e [+-]? [0-9]+"
_PLAIN = r"-? (?: [0-9]* \. [0-9]+ | [0-9]+ \b ) (?! e [+-]? [0-9] ) (?! [,0-9] )"
_NUMBERS = tuple(re.compile(form, re.VERBOSE | re.IGNORECASE) for form in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN))

Question = Mapping[str, Any]
Value = str | float


@dataclass(frozen=True)
class MmmuResult:
    """Which questions are right.

    Attributes:
        right: question id -> right.
        unparsable: multiple-choice questions whose reply names no option.
    """

    right: dict[str, bool]
    unparsable: list[str]

    @property
    def accuracy(self) -> float:
        """Accuracy over all questions, in percent."""
        return percent(self.right.values())

    def subjects(self) -> dict[str, float]:
        """Return subject -> accuracy in percent."""
        return by_group((subject_of(name), right) for name, right in self.right.items())

    def disciplines(self) -> dict[str, float]:
        """Return discipline -> accuracy in percent; subjects that MMMU does not have are "other"."""
        return by_group((_DISCIPLINE_OF.get(subject_of(name), "other"), right) for name, right in self.right.items())


def subject_of(question_id: str) -> str:
    """Return the subject of a question id: `validation_Art_Theory_3` -> `Art_Theory`."""
    return question_id.partition("_")[2].rpartition("_")[0]


def read_questions(path: str) -> list[Question]:
    """Read the questions of one `output.json`, or of all in a folder.

    Raises:
        RequestError: the files are not in that format.
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


def parse_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that a reply chooses, or None.

    It is the last `(X)`; else the last X between spaces; else a leading `X.`, `X:` or `X)`; else, in a reply of more
    than five words, the option whose text occurs last.

    Args:
        options: letter -> text.
    """
    for sign in _EDGES:
        reply = reply.strip(sign)
    text = f" {reply} "
    lower = text.lower()
    places = {letter: text.rfind(f"({letter})") for letter in options}
    if max(places.values(), default=-1) < 0:
        places = {letter: text.rfind(f" {letter} ") for letter in options}
    if max(places.values(), default=-1) < 0:
        beginning = _BEGINNING.match(reply.strip())
        if beginning is not None and beginning.group(1) in options:
            return beginning.group(1)
        if len(text.split()) > 5:
            places = {letter: lower.rfind(option.lower()) for letter, option in options.items()}
    found = {letter: place for letter, place in places.items() if place >= 0}
    return max(found, key=found.__getitem__) if found else None


def parse_open(reply: str) -> list[Value]:
    """Return every candidate for the answer in a reply to an open question: pieces of text and numbers, normalised.

    A piece is the text after a cue word (`is`, `answer`, `=` in the last line, ...), or the whole reply.
    """
    pieces = _pieces(reply)
    numbers = [number for piece in pieces for pattern in _NUMBERS for number in pattern.findall(piece)]
    return list(dict.fromkeys(value for text in [*pieces, *numbers] for value in normalise(text)))


def _pieces(reply: str) -> list[str]:
    reply = reply.strip().strip(".").lower()
    # The official rules split sentences before a capital letter, after lower-casing: only lines are split.
    lines = reply.split("\n")
    pieces = []
    for number, line in enumerate(lines, start=1):
        cues = [*_CUES, "="] if number == len(lines) else list(_CUES)
        tails = [tail for cue in cues if cue in line and (tail := line.split(cue)[-1].strip())]
        if tails and (shortest := min(tails, key=len)) not in [*_EDGES]:
            pieces.append(shortest)
    return pieces or [reply]


def normalise(text: str) -> list[Value]:
    """Return a number rounded to two decimals, or text in lower case; a single letter with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_is_right(answers: Sequence[str], parsed: Sequence[Value]) -> bool:
    """Return True if a number equals an answer, or an answer's text occurs in a piece of text."""
    wanted = [value for answer in answers for value in normalise(answer)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in parsed)


def score_replies(questions: Sequence[Question], replies: Mapping[str, str]) -> MmmuResult:
    """Compare replies with the answers.

    Args:
        replies: question id -> reply; a missing one counts as wrong.
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


def score(annotation_file: str, result_file: str | None = None) -> Score:
    """Score answers to MMMU, by default the `response` of each question; unusable input raises RequestError."""
    questions = read_questions(annotation_file)
    source = result_file or annotation_file
    if result_file is not None:
        answers = read_json_lines(result_file, ANSWER_FIELDS)
    else:
        answers = [{"question_id": row["id"], "text": row["response"]} for row in questions if "response" in row]
    by_id, coverage = match_answers([question["id"] for question in questions], answers, source)
    result = score_replies(questions, {name: answer["text"] for name, answer in by_id.items()})
    disciplines, subjects = result.disciplines(), result.subjects()
    notes = coverage.warnings("count as wrong")
    if result.unparsable:
        notes.append(
            f"{len(result.unparsable)} replies name no option and count as wrong (the official tool draws one at "
            f"random): {some(result.unparsable)}"
        )
    return Score(
        "MMMU",
        source,
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
        lines=[
            f"Accuracy: {result.accuracy:.2f}% ({len(questions)} questions)",
            *table("Accuracy / discipline", disciplines),
            *table("Accuracy / subject", subjects),
        ],
        notes=notes,
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="output.json, or a folder of them")
    parser.add_argument("--result-file", help="answers of the generator, JSON lines (default: `response`)")


BENCHMARK = Benchmark(__doc__, _add_arguments, lambda args: score(args.annotation_file, args.result_file))
