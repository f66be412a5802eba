"""Answers to ScienceQA, with or without a picture, from a file in training format (contract: eval.md 1.3)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering.answerer import AnswerOptions
from llava.eval.answering.arguments import add_generator_arguments
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import get_chunk, picture_path, select_questions, split_list
from llava.eval.answering.run import NUM_WORKERS, answer_queries
from llava.eval.scoring.json_files import read_json
from llava.program import RequestError, run_program

__all__ = ["eval_model", "get_chunk", "split_list"]

LETTER_PROMPT = "\nAnswer with the option's letter from the given choices directly."


def science_query(problem: dict[str, Any], image_folder: str, single_pred_prompt: bool) -> Query:
    """One record in training format as a query.

    Its prompt, as recorded, has the marker in front if there is a picture: the scorer goes by that.
    """
    message = problem["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
    message += LETTER_PROMPT if single_pred_prompt else ""
    if "image" not in problem:
        return Query({"question_id": problem["id"], "prompt": message}, message)
    prompt = f"{DEFAULT_IMAGE_TOKEN}\n{message}"
    return Query(
        {"question_id": problem["id"], "prompt": prompt}, message, picture_path(image_folder, problem["image"])
    )


def read_problems(path: str) -> list[dict[str, Any]]:
    """The records of a JSON list in training format.

    Raises:
        RequestError: it is something else; names the first record that does not fit.
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


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's problems; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question could not be answered; see `answer_queries`.
    """
    problems = select_questions(read_problems(args.question_file), args)
    queries = [science_query(problem, args.image_folder, args.single_pred_prompt) for problem in problems]
    answer_queries(queries, args, AnswerOptions(args.temperature), args.conv_mode, num_workers=num_workers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser, question_file="tables/question.json", conv_mode="llava_v0")
    parser.add_argument("--answer-prompter", action="store_true", help="accepted, without effect")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    return parser


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
