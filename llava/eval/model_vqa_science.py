"""Answer ScienceQA problems, with or without an image, from a file in training format."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering.arguments import add_generator_arguments, options_from
from llava.eval.answering.options import NUM_WORKERS, DecodingOptions, RunOptions
from llava.eval.answering.queries import LETTER_PROMPT, Query
from llava.eval.answering.question_files import Selection, get_chunk, image_path, split_list
from llava.eval.scoring.json_files import read_json
from llava.program import RequestError, run_program

__all__ = ["eval_model", "get_chunk", "split_list"]


def read_problems(path: str) -> list[dict[str, Any]]:
    """Read the records of a JSON list in training format.

    Raises:
        RequestError: the file has another format; names the first record that does not fit.
    """
    problems = read_json(path)
    if not isinstance(problems, list):
        raise RequestError(f"{path}: not a JSON list; --question-file must be in training format, see docs/data.md")
    for number, problem in enumerate(problems):
        try:
            usable = "id" in problem and isinstance(problem["conversations"][0]["value"], str)
            usable = usable and isinstance(problem.get("image", ""), str)
        except (TypeError, KeyError, IndexError):
            usable = False
        if not usable:
            raise RequestError(
                f"{path}, record {number}: it must have an `id`, `conversations` with a first turn and, if "
                "it has an `image`, its name"
            )
    return problems


def science_query(problem: dict[str, Any], image_folder: str, single_pred_prompt: bool) -> Query:
    """Return one record in training format as a query.

    The recorded prompt starts with the image marker if there is an image: the scorer relies on it.
    """
    message = problem["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
    message += LETTER_PROMPT if single_pred_prompt else ""
    if "image" not in problem:
        return Query({"question_id": problem["id"], "prompt": message}, message)
    prompt = f"{DEFAULT_IMAGE_TOKEN}\n{message}"
    return Query({"question_id": problem["id"], "prompt": prompt}, message, image_path(image_folder, problem["image"]))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser, question_file="tables/question.json", conv_mode="llava_v0")
    parser.add_argument("--answer-prompter", action="store_true", help="accepted, without effect")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    return parser


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's problems; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question was not answered; see `answer_queries`.
    """
    from llava.eval.answering.run import answer_queries  # loads torch

    problems = options_from(Selection, args).of(read_problems(args.question_file))
    queries = [science_query(problem, args.image_folder, args.single_pred_prompt) for problem in problems]
    decoding = DecodingOptions(args.temperature)
    answer_queries(queries, options_from(RunOptions, args), decoding, num_workers=num_workers)


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
