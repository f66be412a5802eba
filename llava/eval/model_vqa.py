"""Answers to a file of questions about pictures, of up to 1024 tokens (contract: eval.md 1.1)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.eval.answering.answerer import AnswerOptions
from llava.eval.answering.arguments import add_decoding_arguments, add_generator_arguments
from llava.eval.answering.question_files import get_chunk, read_picture_questions, split_list
from llava.eval.answering.run import NUM_WORKERS, answer_queries
from llava.program import run_program

__all__ = ["eval_model", "get_chunk", "split_list"]


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's questions; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question could not be answered; see `answer_queries`.
    """
    options = AnswerOptions(args.temperature, args.top_p, args.num_beams)
    answer_queries(read_picture_questions(args), args, options, args.conv_mode, num_workers=num_workers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser)
    return parser


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
