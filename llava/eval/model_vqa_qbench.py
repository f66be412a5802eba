"""Answer Q-Bench's questions about image quality."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import string
from typing import Any

from llava.eval.answering.arguments import add_run_arguments, options_from
from llava.eval.answering.options import NUM_WORKERS, DecodingOptions, RunOptions
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import Selection, image_path
from llava.eval.scoring.json_files import read_json, require_rows
from llava.program import RequestError, run_program

INVITATIONS = {"en": "Choose between one of the options as follows:", "zh": "在下列选项中选择一个:"}
REQUIRED = {"img_path": str, "question": str, "candidates": list}


def read_items(path: str) -> list[dict[str, Any]]:
    """Read the questions of a JSON list.

    Raises:
        RequestError: the file has another format.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise RequestError(f"{path}: not a JSON list of questions")
    require_rows(items, path, REQUIRED)
    return items


def qbench_query(item: dict[str, Any], image_folder: str, lang: str) -> Query:
    """Return a question with its candidates, one per line, marked A., B., ..."""
    lines = [f"{letter}. {text}\n" for letter, text in zip(string.ascii_uppercase, item["candidates"])]
    message = f"{item['question']}\n{INVITATIONS[lang]}\n{''.join(lines)}"
    return Query(item, message, image_path(image_folder, item["img_path"]))


def qbench_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the question's own fields and the reply."""
    return {**query.fields, "response": text} | ({"metadata": metadata} if metadata else {})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-folder", type=str, default="./playground/data/qbench/images_llvisionqa")
    parser.add_argument("--questions-file", type=str, default="./playground/data/qbench/llvisionqa_dev.json")
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    parser.add_argument("--conv-mode", type=str, default="llava_v1")
    parser.add_argument("--lang", type=str, default="en", choices=sorted(INVITATIONS))
    add_run_arguments(parser)
    return parser


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers, decoded greedily; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question was not answered; see `answer_queries`.
    """
    from llava.eval.answering.run import answer_queries  # loads torch

    items = options_from(Selection, args).of(read_items(args.questions_file))
    answer_queries(
        [qbench_query(item, args.image_folder, args.lang) for item in items],
        options_from(RunOptions, args),
        DecodingOptions(temperature=0),
        to_line=qbench_line,
        key_fields=("img_path", "question"),
        num_workers=num_workers,
    )


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
