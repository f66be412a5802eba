"""Answers matched with a benchmark's questions by id: which are missing, repeated, or foreign."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava.program import RequestError

Answer = Mapping[str, Any]

# The fields of an answer that the scorers need; the generators write more.
ANSWER_FIELDS = {"question_id": str | int, "text": str}
PROMPTED_FIELDS = ANSWER_FIELDS | {"prompt": str}

_LONGEST_SHOWN = 80


class IncompleteError(RequestError, AssertionError):
    """Input that upstream refuses with an assertion; an AssertionError too, so that callers of upstream catch it."""


@dataclass(frozen=True)
class Coverage:
    """How well a file of answers covers a benchmark; ids are in the order of the benchmark.

    Attributes:
        expected: number of questions of the benchmark.
        missing: questions without an answer.
        repeated: questions with several answers.
        foreign: ids of answers that belong to no question.
    """

    expected: int
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.expected - len(self.missing)

    def warnings(self, missing_count_as: str) -> list[str]:
        """Return warnings for the reader of the score; none if every question has exactly one answer.

        Args:
            missing_count_as: treatment of questions without an answer, for example "count as wrong".
        """
        lines = []
        if self.missing:
            head = f"{len(self.missing)} of {self.expected} questions have no answer"
            lines.append(f"{head} and {missing_count_as}: {some(self.missing)}")
        if self.repeated:
            lines.append(
                f"{len(self.repeated)} questions have several answers, the last one counts: {some(self.repeated)}"
            )
        if self.foreign:
            lines.append(f"{len(self.foreign)} answers belong to no question and are left out: {some(self.foreign)}")
        return lines


def match_answers(
    question_ids: Iterable[Any],
    answers: Sequence[Answer],
    place: str,
    key: Callable[[Any], Any] = str,
    id_field: str = "question_id",
) -> tuple[dict[Any, Answer], Coverage]:
    """Return the answer to each question, in the order of the questions; the last one if there are several.

    Args:
        question_ids: ids of the benchmark's questions.
        place: file of the answers, for error messages.
        key: maps an id to the form in which ids are compared.

    Raises:
        IncompleteError: no answer belongs to any of the questions.
    """
    wanted = list(dict.fromkeys(key(question_id) for question_id in question_ids))
    given: dict[Any, Answer] = {}
    repeated = set()
    for answer in answers:
        answer_key = key(answer[id_field])
        if answer_key in given:
            repeated.add(answer_key)
        given[answer_key] = answer
    matched = {name: given[name] for name in wanted if name in given}
    if wanted and not matched:
        found = f"its {id_field}s are {some(given)}" if given else "it holds no answers"
        raise IncompleteError(
            f"{place} answers none of the {len(wanted)} questions ({some(wanted)}): {found}; are these two files of "
            "the same benchmark and split?"
        )
    known = set(wanted)
    coverage = Coverage(
        expected=len(wanted),
        missing=[str(name) for name in wanted if name not in given],
        repeated=[str(name) for name in wanted if name in repeated],
        foreign=[str(name) for name in given if name not in known],
    )
    return matched, coverage


def some(values: Iterable[Any], most: int = 5) -> str:
    """Return the first few of many values on one line, for a message; long values are cut off."""
    values = list(values)
    shown = [" ".join(str(value).split()) for value in values[:most]]
    shown = [text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..." for text in shown]
    return ", ".join(shown) + (", ..." if len(values) > most else "")


def note(text: str) -> None:
    """Print a message of our own to standard error: standard output has exactly upstream's lines."""
    print(f"note: {text}", file=sys.stderr)
