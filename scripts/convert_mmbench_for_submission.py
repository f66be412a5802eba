"""Answers as a submission table for MMBench's evaluation server (contract: eval.md 3)."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
from typing import TYPE_CHECKING, Any

from llava.eval.scoring.answers import ANSWER_FIELDS, Answer, match_answers, note
from llava.eval.scoring.json_files import path_below, read_json_lines
from llava.extras import require_extra
from llava.files import write_atomically
from llava.program import RequestError, run_program

if TYPE_CHECKING:
    import pandas

LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", type=str, required=True, help="MMBench's table, .tsv")
    parser.add_argument("--result-dir", type=str, required=True, help="folder of <experiment>.jsonl")
    parser.add_argument("--upload-dir", type=str, required=True, help="folder of <experiment>.xlsx, made if missing")
    parser.add_argument("--experiment", type=str, required=True, help="name of the answers file without .jsonl")
    return parser


def read_table(path: str) -> "pandas.DataFrame":
    """MMBench's table without the columns that the server does not want; not every table has them all (E-10).

    Raises:
        RequestError: it is no such table.
    """
    import pandas

    try:
        table = pandas.read_table(path)
    except ValueError as error:
        raise RequestError(f"{path}: not a tab-separated table ({error}); is it the right file?") from error
    if "index" not in table.columns:
        raise RequestError(f"{path}: no column 'index', only {', '.join(table.columns[:8])}; is it the right file?")
    if "prediction" in table.columns:
        raise RequestError(f"{path}: there is a column 'prediction' already; give MMBench's own table")
    return table.drop(columns=[name for name in LEFT_OUT if name in table.columns])


def answers_to_show(answers: list[Answer]) -> list[Answer]:
    """The answers to the options in the table's own order: of several rounds (--all-rounds) the first."""
    return [answer for answer in answers if answer.get("round_id", 0) == 0]


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        ImportError: the packages for tables are missing.
        RequestError: input that cannot be used.
    """
    require_extra("pandas", "eval")
    require_extra("openpyxl", "eval")
    source = path_below(args.result_dir, f"{args.experiment}.jsonl")
    target = path_below(args.upload_dir, f"{args.experiment}.xlsx")
    table = read_table(args.annotation_file)
    answers = answers_to_show(read_json_lines(source, ANSWER_FIELDS))
    by_id, coverage = match_answers(table["index"], answers, source)
    for line in coverage.warnings("are submitted empty"):
        note(line)
    predictions = [by_id[str(index)]["text"] if str(index) in by_id else None for index in table["index"]]
    table.insert(min(PREDICTION_COLUMN, len(table.columns)), "prediction", predictions)
    write_atomically(target, lambda path: _write_xlsx(table.map(_cell), path))


def _cell(value: Any) -> Any:
    """A text without the control characters that a sheet may not hold; any other value as it is."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    return ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value


def _write_xlsx(table: "pandas.DataFrame", path: str) -> None:
    with open(path, "wb") as file:  # by its name pandas would refuse it: a file being written does not end in .xlsx
        table.to_excel(file, index=False, engine="openpyxl")


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
