"""Convert answers to the table that MMBench's evaluation server takes."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
from typing import TYPE_CHECKING, Any

from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import path_below, read_json_lines
from llava.eval.scoring.mmbench_table import read_table
from llava.extras import require_extra
from llava.files import write_atomically
from llava.program import RequestError, run_program

if TYPE_CHECKING:
    import pandas

# Columns that the server does not take; upstream fails on a table without `comment` or `l2-category`.
LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True, help="MMBench's table, .tsv")
    parser.add_argument("--result-dir", required=True, help="folder of <experiment>.jsonl")
    parser.add_argument("--upload-dir", required=True, help="folder of <experiment>.xlsx; created if missing")
    parser.add_argument("--experiment", required=True, help="name of the answers file without .jsonl")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the table with a column of predictions.

    Raises:
        ImportError: pandas or openpyxl is missing.
        RequestError: unusable input.
    """
    require_extra("openpyxl", "eval")
    source = path_below(args.result_dir, f"{args.experiment}.jsonl")
    target = path_below(args.upload_dir, f"{args.experiment}.xlsx")
    table = read_table(args.annotation_file, ("index",), leave_out=LEFT_OUT)
    if "prediction" in table.columns:
        raise RequestError(f"{args.annotation_file} already has a column 'prediction'; give MMBench's own table")
    # The table has the options in their original order, as in the first of several rounds (--all-rounds).
    answers = [answer for answer in read_json_lines(source, ANSWER_FIELDS) if answer.get("round_id", 0) == 0]
    by_id, coverage = match_answers(table["index"], answers, source)
    for line in coverage.warnings("are submitted empty"):
        note(line)
    predictions = [by_id[str(index)]["text"] if str(index) in by_id else None for index in table["index"]]
    table.insert(min(PREDICTION_COLUMN, len(table.columns)), "prediction", predictions)
    write_atomically(target, lambda path: _write_xlsx(table.map(_cell), path))


def _cell(value: Any) -> Any:
    """Remove control characters, which a sheet may not contain, from a text."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    return ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value


def _write_xlsx(table: "pandas.DataFrame", path: str) -> None:
    with open(path, "wb") as file:  # pandas refuses the name of the temporary file, which does not end in .xlsx
        table.to_excel(file, index=False, engine="openpyxl")


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
