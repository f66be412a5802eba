"""LLaVA-Bench (in the wild): let a judge who reads image captions compare two answers to each question."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.judging.arguments import add_judge_arguments, add_review_arguments, judge_options, review_files
from llava.eval.judging.judge import Judge
from llava.eval.judging.reviews import BENCH_CONTEXT, review_image_answers
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_review_arguments(parser, "question_id, text, category, image", images=True)
    add_judge_arguments(parser, model="gpt-4-0314", parallel=1)
    return parser


def main(args: argparse.Namespace) -> None:
    judge = Judge(judge_options(args))
    review_image_answers(review_files(args), args.context, BENCH_CONTEXT, judge, args.judge_parallel)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
