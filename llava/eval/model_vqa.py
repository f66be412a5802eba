"""Answer questions about images, with replies of up to 1024 tokens."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.eval.answering.arguments import add_decoding_arguments, add_generator_arguments, options_from
from llava.eval.answering.options import NUM_WORKERS, DecodingOptions, RunOptions
from llava.eval.answering.question_files import Selection, get_chunk, read_image_questions, split_list
from llava.program import run_program

__all__ = ["eval_model", "get_chunk", "split_list"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser)
    return parser


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's questions; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question was not answered; see `answer_queries`.
    """
    from llava.eval.answering.run import answer_queries  # loads torch

    queries = read_image_questions(args.question_file, args.image_folder, options_from(Selection, args))
    decoding = DecodingOptions(args.temperature, args.top_p, args.num_beams)
    answer_queries(queries, options_from(RunOptions, args), decoding, num_workers=num_workers)


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
