"""Let a judge compare two answers to each question without an image: see llava.eval.judging.reviews."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.judging.arguments import add_judge_arguments, add_review_arguments, judge_options, review_files
from llava.eval.judging.judge import Judge
from llava.eval.judging.reviews import review_text_answers
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_review_arguments(parser, "question_id, text, optionally category")
    add_judge_arguments(parser, model="gpt-4", parallel=8)
    return parser


def main(args: argparse.Namespace) -> None:
    review_text_answers(review_files(args), Judge(judge_options(args, pause=3.0)), args.judge_parallel)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
