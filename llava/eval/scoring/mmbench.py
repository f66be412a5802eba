"""MMBench and CCBench: vanilla and circular accuracy on a table that has the answers (dev).

Vanilla: the question is asked once. Circular (https://github.com/open-compass/MMBench): it is asked once per option,
with the options rotated, and is right if all passes are. Passes are rows of the table with the same index modulo a
million, or rounds of an answers file made with --all-rounds. The rules of `option_letters` find the letter in a reply.
The official server asks a language model about replies that its rules do not cover; here they count as wrong, with a
note, and so do missing answers.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, some
from llava.eval.scoring.json_files import read_json_lines, require_rows
from llava.eval.scoring.mmbench_table import is_missing, options_of, read_table, rows_of
from llava.eval.scoring.option_letters import extract_letter
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

PASS_STRIDE = 1_000_000  # the k-th pass of question i is row i + k * PASS_STRIDE
DIVISIONS = ("category", "l2-category")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        answer: letter of the right option.
        options: letter -> text, up to the first missing option.
        groups: `category`, `l2-category` -> value, as far as the table has them.
    """

    index: int
    answer: str
    options: Mapping[str, str]
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Pass:
    """One way to ask a question: a row with its options rotated to the left `turn` times."""

    row: Row
    turn: int

    @property
    def key(self) -> str:
        return pass_key(self.row.index, self.turn)

    @property
    def question(self) -> int:
        """The number that all passes of one question share."""
        return self.row.index % PASS_STRIDE

    @property
    def is_vanilla(self) -> bool:
        return self.row.index < PASS_STRIDE and self.turn == 0

    def letter(self, reply: str) -> str | None:
        """Return the option that a reply chooses, by its letter in the table; None if the reply names none."""
        letters, texts = list(self.row.options), list(self.row.options.values())
        shown = dict(zip(letters, texts[self.turn :] + texts[: self.turn]))
        letter = extract_letter(reply, shown)
        return None if letter is None else letters[(letters.index(letter) + self.turn) % len(letters)]


@dataclass(frozen=True)
class MmbenchResult:
    """Which passes and questions are right.

    Attributes:
        right: key of a pass -> its letter is right.
        unparsable: keys of passes whose reply names no option.
        vanilla: question -> right in its vanilla pass.
        circular: question -> right in every pass; empty if no question has several.
        incomplete: questions with fewer passes than options, if any question has several.
        groups: question -> its groups.
    """

    right: dict[str, bool]
    unparsable: list[str]
    vanilla: dict[int, bool]
    circular: dict[int, bool]
    incomplete: list[int]
    groups: dict[int, Mapping[str, str]]

    @property
    def protocols(self) -> dict[str, dict[int, bool]]:
        """Protocol -> question -> right, for "vanilla" and, if there is one, "circular"."""
        return {"vanilla": self.vanilla} | ({"circular": self.circular} if self.circular else {})

    def accuracy(self, protocol: str) -> float:
        """Return the accuracy over all questions, in percent."""
        return percent(self.protocols[protocol].values())

    def by_division(self, protocol: str, name: str) -> dict[str, float]:
        """Return the accuracy of each group of a division, in percent."""
        right = self.protocols[protocol]
        return by_group((self.groups[n][name], right[n]) for n in right if name in self.groups[n])

    def lines(self) -> list[str]:
        lines = []
        for name, right in self.protocols.items():
            title = f"{name.capitalize()} accuracy"
            lines.append(f"{title}: {self.accuracy(name):.2f}% ({len(right)} questions)")
            for division in DIVISIONS:
                lines += table(f"{title} / {division}", self.by_division(name, division))
        return lines

    def notes(self) -> list[str]:
        notes = []
        if self.unparsable:
            notes.append(f"{len(self.unparsable)} replies name no option and count as wrong: {some(self.unparsable)}")
        if self.incomplete:
            notes.append(f"{len(self.incomplete)} questions have fewer passes than options: {some(self.incomplete)}")
        if not self.circular:
            notes.append(
                "no circular accuracy: every question is asked once (a circular table or --all-rounds asks once per "
                "option)"
            )
        return notes


def read_rows(path: str) -> list[Row]:
    """Read the questions of a table that has the answers.

    Raises:
        ImportError: pandas is missing.
        RequestError: the file is not such a table.
    """
    content = read_table(path, ("index", "A", "B"), leave_out=("image",), as_text=True)
    if "answer" not in content.columns:
        raise RequestError(f"{path}: no column 'answer'; only a split with public answers (dev) can be scored here")
    rows = [_row(record, path) for record in rows_of(content)]
    if all(row.index >= PASS_STRIDE for row in rows):
        raise RequestError(f"{path}: no row with an index below {PASS_STRIDE}, and so no vanilla question")
    return rows


def _row(record: Mapping[str, Any], path: str) -> Row:
    options = options_of(record)
    index, answer = str(record["index"]), str(record["answer"]).strip()
    if not re.fullmatch("[0-9]{1,18}", index):
        raise RequestError(f"{path}: the index {index[:40]!r} is not a whole number; is it the right file?")
    if answer not in options:
        raise RequestError(f"{path}, index {index!r}: answer {answer!r} is not one of {len(options)} options")
    groups = {name: record[name] for name in DIVISIONS if name in record and not is_missing(record[name])}
    return Row(int(index), answer, options, groups)


def pass_key(index: str | int, turn: int) -> str:
    """Return the key by which answers are matched."""
    return f"{index} round {turn}"


def passes_of(rows: Sequence[Row], all_rounds: bool) -> list[Pass]:
    """Return every expected pass: one per row, or one per option of every row."""
    return [Pass(row, turn) for row in rows for turn in range(len(row.options) if all_rounds else 1)]


def score_replies(passes: Sequence[Pass], replies: Mapping[str, str]) -> MmbenchResult:
    """Compare replies with the answers.

    Args:
        replies: key of a pass -> reply; a missing one counts as wrong.
    """
    letters = {entry.key: entry.letter(replies[entry.key]) for entry in passes if entry.key in replies}
    right = {entry.key: letters.get(entry.key) == entry.row.answer for entry in passes}
    questions: dict[int, list[Pass]] = {}
    for entry in passes:
        questions.setdefault(entry.question, []).append(entry)
    several = any(len(entries) > 1 for entries in questions.values())
    return MmbenchResult(
        right,
        unparsable=[key for key, letter in letters.items() if letter is None],
        vanilla={entry.question: right[entry.key] for entry in passes if entry.is_vanilla},
        circular={n: all(right[e.key] for e in entries) for n, entries in questions.items()} if several else {},
        incomplete=[n for n, entries in questions.items() if several and len(entries) < len(entries[0].row.options)],
        groups={n: entries[0].row.groups for n, entries in questions.items()},
    )


def score(annotation_file: str, result_file: str, benchmark: str = "MMB") -> Score:
    """Score answers of model_vqa_mmbench.

    Args:
        benchmark: its name in the score file ("MMB", "CCBench", ...).

    Raises:
        ImportError: pandas is missing.
        RequestError: unusable input.
    """
    rows = read_rows(annotation_file)
    answers = [{"round_id": 0} | row for row in read_json_lines(result_file, ANSWER_FIELDS)]
    require_rows(answers, result_file, {"round_id": int})
    answers = [row | {"key": pass_key(row["question_id"], row["round_id"])} for row in answers]
    passes = passes_of(rows, all_rounds=any(answer["round_id"] > 0 for answer in answers))
    by_key, coverage = match_answers([entry.key for entry in passes], answers, result_file, id_field="key")
    result = score_replies(passes, {key: answer["text"] for key, answer in by_key.items()})
    protocol, right = list(result.protocols.items())[-1]  # circular if there is one
    return Score(
        benchmark,
        result_file,
        "mean",
        [item(n, int(value), result.groups[n].get("category", "all")) for n, value in right.items()],
        details={
            "protocol": protocol,
            **{name: result.accuracy(name) for name in result.protocols},
            "categories": result.by_division(protocol, "category"),
            "l2_categories": result.by_division(protocol, "l2-category"),
            "unparsable": len(result.unparsable),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        lines=result.lines(),
        notes=[*coverage.warnings("count as wrong"), *result.notes()],
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="table of MMBench or CCBench, .tsv")
    parser.add_argument("--result-file", required=True, help="answers of model_vqa_mmbench, JSON lines")
    parser.add_argument("--benchmark", default="MMB", help="name in the score file (MMB, CCBench, ...)")


BENCHMARK = Benchmark(
    __doc__, _add_arguments, lambda args: score(args.annotation_file, args.result_file, args.benchmark)
)
