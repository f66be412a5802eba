"""Answers to MMBench's multiple-choice tables, which hold the pictures themselves (contract: eval.md 1.4)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llava.eval.answering.answerer import AnswerOptions, model_name, template_for
from llava.eval.answering.answers_file import answer_record
from llava.eval.answering.arguments import add_decoding_arguments, add_generator_arguments
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import get_chunk, select_questions, split_list
from llava.eval.answering.run import NUM_WORKERS, answer_queries
from llava.eval.model_vqa_science import LETTER_PROMPT
from llava.extras import require_extra
from llava.program import RequestError, run_program

if TYPE_CHECKING:
    import pandas

__all__ = ["eval_model", "get_chunk", "split_list"]

LETTERS = ("A", "B", "C", "D")
SUFFIXES = {"en": LETTER_PROMPT, "cn": "\n请直接回答选项字母。"}


def is_missing(value: Any) -> bool:
    """True for an empty cell: None, NaN, or one of the texts `nan` and `none`."""
    return value is None or value != value or (isinstance(value, str) and value.lower() in ("nan", "none"))


def options_of(row: dict[str, Any]) -> list[Any]:
    """The choices of a row, in order, up to the first that is missing."""
    options = []
    for letter in LETTERS:
        if is_missing(row.get(letter)):
            break
        options.append(row[letter])
    return options


def mmbench_queries(row: dict[str, Any], all_rounds: bool, suffix: str) -> Iterator[Query]:
    """The query of a row; with `all_rounds` one for each rotation of its choices, to the left.

    The letters shown stay A, B, ...; `option_char` says which of the table each stands for.
    """
    options = options_of(row)
    hint = "" if is_missing(row.get("hint")) else f"{row['hint']}\n"
    for round_id in range(max(1, len(options)) if all_rounds else 1):
        shown = options[round_id:] + options[:round_id]
        letters = LETTERS[: len(options)]
        lines = [f"{letter}. {option}" for letter, option in zip(letters, shown, strict=True)]
        prompt = "\n".join([f"{hint}{row['question']}", *lines])
        fields = {
            "question_id": row["index"],
            "round_id": round_id,
            "prompt": prompt,
            "options": shown,
            "option_char": [*letters[round_id:], *letters[:round_id]],
        }
        yield Query(fields, prompt + suffix, image_base64=row["image"])


def mmbench_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The standard line and, in upstream's order, round and options."""
    fields = query.fields
    line = answer_record(fields["question_id"], fields["prompt"], text, model, metadata)
    return {
        "question_id": line.pop("question_id"),
        "round_id": fields["round_id"],
        "prompt": line.pop("prompt"),
        "text": line.pop("text"),
        "options": fields["options"],
        "option_char": fields["option_char"],
        **line,
    }


def read_table(path: str) -> "pandas.DataFrame":
    """A tab-separated table of questions.

    Raises:
        RequestError: it is not one, or lacks a column that every question needs.
        ImportError: pandas is missing; names the extra.
    """
    require_extra("pandas", "eval")
    import pandas

    try:
        table = pandas.read_table(os.path.expanduser(path))
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise RequestError(f"{path}: not a tab-separated table ({str(error).strip()})") from error
    missing = [column for column in ("index", "question", "image", "A") if column not in table]
    if missing:
        raise RequestError(f"{path}: the table has no column {', '.join(missing)}; is it an MMBench .tsv file?")
    return table


def _rows(table: "pandas.DataFrame") -> list[dict[str, Any]]:
    """The rows as plain Python values, which JSON can hold."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.astype(object).itertuples(index=False)]


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's rows; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or table, or some question could not be answered; see `answer_queries`.
    """
    conv_mode = template_for(model_name(args.model_path), args.conv_mode)
    suffix = SUFFIXES.get(args.lang) if args.single_pred_prompt else ""
    if suffix is None:
        raise RequestError(f"--lang is {args.lang!r}; --single-pred-prompt knows {', '.join(SUFFIXES)}")
    rows = select_questions(_rows(read_table(args.question_file)), args)
    queries = [query for row in rows for query in mmbench_queries(row, args.all_rounds, suffix)]
    options = AnswerOptions(args.temperature, args.top_p, args.num_beams)
    answer_queries(queries, args, options, conv_mode, to_line=mmbench_line, num_workers=num_workers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser)
    parser.add_argument("--all-rounds", action="store_true", help="as many rounds as choices, rotated")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--lang", type=str, default="en", help="language of that: en or cn")
    return parser


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
