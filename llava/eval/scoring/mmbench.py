"""MMBench and CCBench: vanilla and circular accuracy on a table that has the answers (dev).

Vanilla: the question as it stands. Circular (https://github.com/open-compass/MMBench): it is asked once per option,
with the options rotated, and is right if all passes are. Passes are rows of the table with the same index modulo a
million, or rounds of an answers file made with --all-rounds. The letter is found by the rules of
`option_letters`; the benchmark's server asks a language model about the replies that its rules do not
cover, here they are wrong and told, and so are missing answers.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note, some
from llava.eval.scoring.json_files import read_json_lines, require_rows
from llava.eval.scoring.option_letters import extract_letter
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.extras import require_extra
from llava.program import RequestError, run_program

PASS_STRIDE = 1_000_000  # the k-th pass of question i is row i + k * PASS_STRIDE
_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        answer: letter of the right option.
        options: texts, up to the first missing one.
        groups: `category`, `l2-category` -> value, as far as the table has them.
    """

    index: int
    answer: str
    options: tuple[str, ...]
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Pass:
    """One time a question is asked: a row, its options rotated to the left `turn` times."""

    row: Row
    turn: int

    @property
    def key(self) -> str:
        return pass_key(self.row.index, self.turn)

    @property
    def question(self) -> int:
        """What the passes of one question have in common."""
        return self.row.index % PASS_STRIDE

    @property
    def is_vanilla(self) -> bool:
        return self.row.index < PASS_STRIDE and self.turn == 0

    def letter(self, reply: str) -> str | None:
        """The option that a reply chooses, by its letter in the table; None where it does not tell."""
        shown = [*self.row.options[self.turn :], *self.row.options[: self.turn]]
        letter = extract_letter(reply, dict(zip(_LETTERS, shown)))
        if letter is None:
            return None
        return _LETTERS[(_LETTERS.index(letter) + self.turn) % len(shown)]


@dataclass(frozen=True)
class MmbenchResult:
    """
    Attributes:
        right: key of a pass -> its letter is right.
        unparsable: keys of the passes whose reply gives no letter.
        vanilla: question -> right as it stands.
        circular: question -> right in every pass; empty where no question has several.
        incomplete: questions with fewer passes than options, where any has several.
        groups: question -> its groups.
    """

    right: dict[str, bool]
    unparsable: list[str]
    vanilla: dict[int, bool]
    circular: dict[int, bool]
    incomplete: list[int]
    groups: dict[int, Mapping[str, str]]

    def accuracy(self, protocol: str) -> float:
        """In percent; `protocol` is "vanilla" or "circular"."""
        return percent(getattr(self, protocol).values())

    def division(self, protocol: str, name: str) -> dict[str, float]:
        """Group of that division -> accuracy in percent."""
        right = getattr(self, protocol)
        return by_group((self.groups[n][name], right[n]) for n in right if name in self.groups[n])


def pass_key(index: str | int, turn: int) -> str:
    """How answers are matched: index of the row, round."""
    return f"{index} round {turn}"


def passes_of(rows: Sequence[Row], all_rounds: bool) -> list[Pass]:
    """Every pass that is expected: one per row, or one per option of every row."""
    return [Pass(row, turn) for row in rows for turn in range(len(row.options) if all_rounds else 1)]


def score_replies(passes: Sequence[Pass], replies: Mapping[str, str]) -> MmbenchResult:
    """
    Args:
        replies: key of a pass -> reply; a missing one is wrong.
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


def read_rows(path: str) -> list[Row]:
    """
    Raises:
        ImportError: the package for tables is missing.
        RequestError: not a table with answers.
    """
    require_extra("pandas", "eval")
    import pandas

    try:
        content = pandas.read_table(path, dtype=str, keep_default_na=False, usecols=lambda name: name != "image")
    except ValueError as error:
        raise RequestError(f"{path}: not a tab-separated table ({error}); is it the right file?") from error
    missing = [name for name in ("index", "A", "B") if name not in content.columns]
    if missing:
        raise RequestError(f"{path}: no column {' and no column '.join(missing)}; it should be a table of MMBench")
    if "answer" not in content.columns:
        raise RequestError(f"{path}: no column 'answer'; only a split with public answers (dev) can be scored here")
    rows = [_row(record, path) for record in content.to_dict("records")]
    if all(row.index >= PASS_STRIDE for row in rows):
        raise RequestError(f"{path}: no row with an index below {PASS_STRIDE}, and so no question as it stands")
    return rows


def _row(record: Mapping[str, str], path: str) -> Row:
    options = []
    for letter in _LETTERS:
        if record.get(letter, "").strip().lower() in ("", "nan", "none"):
            break
        options.append(record[letter])
    answer = record["answer"].strip()
    if not re.fullmatch("[0-9]{1,18}", record["index"]):
        raise RequestError(f"{path}: the index {record['index'][:40]!r} is not a whole number; is it the right file?")
    if answer not in _LETTERS[: len(options)] or len(answer) != 1:
        raise RequestError(f"{path}, index {record['index']!r}: answer {answer!r} is not one of {len(options)} options")
    groups = {name: record[name] for name in ("category", "l2-category") if record.get(name)}
    return Row(int(record["index"]), answer, tuple(options), groups)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", type=str, required=True, help="table of MMBench or CCBench, .tsv")
    parser.add_argument("--result-file", type=str, required=True, help="answers of model_vqa_mmbench, JSON lines")
    parser.add_argument("--benchmark", type=str, default="MMB", help="its name in the score file (MMB, CCBench, ...)")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        ImportError: the package for tables is missing.
        RequestError: input that cannot be used.
    """
    rows = read_rows(args.annotation_file)
    answers = [{"round_id": 0} | row for row in read_json_lines(args.result_file, ANSWER_FIELDS)]
    require_rows(answers, args.result_file, {"round_id": int})
    answers = [row | {"key": pass_key(row["question_id"], row["round_id"])} for row in answers]
    passes = passes_of(rows, all_rounds=any(answer["round_id"] > 0 for answer in answers))
    by_key, coverage = match_answers([entry.key for entry in passes], answers, args.result_file, id_field="key")
    result = score_replies(passes, {key: answer["text"] for key, answer in by_key.items()})
    protocols = [name for name in ("vanilla", "circular") if getattr(result, name)]
    for name in protocols:
        print(f"{name.capitalize()} accuracy: {result.accuracy(name):.2f}% ({len(getattr(result, name))} questions)")
        for division in ("category", "l2-category"):
            for line in table(f"{name.capitalize()} accuracy / {division}", result.division(name, division)):
                print(line)
    for line in coverage.warnings("count as wrong"):
        note(line)
    if result.unparsable:
        note(f"{len(result.unparsable)} replies name no option and count as wrong: {some(result.unparsable)}")
    if result.incomplete:
        note(f"{len(result.incomplete)} questions have fewer passes than options: {some(result.incomplete)}")
    if not result.circular:
        note(
            "no circular accuracy: every question is asked once (a circular table or --all-rounds asks once per option)"
        )
    protocol = protocols[-1]
    write_score(
        args.score_file,
        args.benchmark,
        experiment_name(args.result_file, args.experiment),
        "mean",
        [
            item(n, int(right), result.groups[n].get("category", "all"))
            for n, right in getattr(result, protocol).items()
        ],
        details={
            "protocol": protocol,
            **{name: result.accuracy(name) for name in protocols},
            "categories": result.division(protocol, "category"),
            "l2_categories": result.division(protocol, "l2-category"),
            "unparsable": len(result.unparsable),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        answers=answers,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
