"""Answer MMBench's multiple-choice tables, which contain their images."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Iterator
from typing import Any

from llava.eval.answering.answers_file import answer_record
from llava.eval.answering.arguments import add_decoding_arguments, add_generator_arguments, options_from
from llava.eval.answering.model_names import model_name, template_for
from llava.eval.answering.options import NUM_WORKERS, DecodingOptions, RunOptions
from llava.eval.answering.queries import LETTER_PROMPT, Query
from llava.eval.answering.question_files import Selection, get_chunk, split_list
from llava.eval.scoring.mmbench_table import is_missing, options_of, read_table, rows_of
from llava.program import RequestError, run_program

__all__ = ["eval_model", "get_chunk", "split_list"]

COLUMNS = ("index", "question", "image", "A")
SUFFIXES = {"en": LETTER_PROMPT, "cn": "\n请直接回答选项字母。"}


def mmbench_queries(row: dict[str, Any], all_rounds: bool, suffix: str) -> Iterator[Query]:
    """Yield the query of a row; with `all_rounds`, one per rotation of its options to the left.

    The letters in the question stay A, B, ...; `option_char` has the letter in the table of each shown option.
    """
    by_letter = options_of(row)
    letters, options = list(by_letter), list(by_letter.values())
    hint = "" if is_missing(row.get("hint")) else f"{row['hint']}\n"
    for round_id in range(max(1, len(options)) if all_rounds else 1):
        shown = options[round_id:] + options[:round_id]
        lines = [f"{letter}. {option}" for letter, option in zip(letters, shown, strict=True)]
        prompt = "\n".join([f"{hint}{row['question']}", *lines])
        fields = {
            "question_id": row["index"],
            "round_id": round_id,
            "prompt": prompt,
            "options": shown,
            "option_char": letters[round_id:] + letters[:round_id],
        }
        yield Query(fields, prompt + suffix, image_base64=row["image"])


def mmbench_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the standard line with round and options, in upstream's order of fields."""
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser)
    parser.add_argument("--all-rounds", action="store_true", help="one round per option, with the options rotated")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--lang", type=str, default="en", help="language of that request: en or cn")
    return parser


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's rows; `args` is any object with the flags as attributes.

    Raises:
        ImportError: pandas is missing.
        RequestError: bad flags or table, or some question was not answered; see `answer_queries`.
    """
    from llava.eval.answering.run import answer_queries  # loads torch

    run = options_from(RunOptions, args, conv_mode=template_for(model_name(args.model_path), args.conv_mode))
    suffix = SUFFIXES.get(args.lang) if args.single_pred_prompt else ""
    if suffix is None:
        raise RequestError(f"--lang is {args.lang!r}; --single-pred-prompt knows {', '.join(SUFFIXES)}")
    rows = options_from(Selection, args).of(rows_of(read_table(args.question_file, COLUMNS)))
    queries = [query for row in rows for query in mmbench_queries(row, args.all_rounds, suffix)]
    decoding = DecodingOptions(args.temperature, args.top_p, args.num_beams)
    answer_queries(queries, run, decoding, to_line=mmbench_line, num_workers=num_workers)


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
