"""Score GPT-4's answers to ScienceQA, completed by ours: see llava.eval.scoring.science_qa_gpt4."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.scoring.science_qa import add_problem_arguments, option_letters
from llava.eval.scoring.science_qa_gpt4 import Comparison, combined_lines, compare
from llava.program import run_program


def build_parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add_problem_arguments(parser)
    parser.add_argument("--gpt4-result", required=True, help="GPT-4's result file (eval_science_qa)")
    parser.add_argument("--our-result", required=True, help="answers of the generator, JSON lines")
    return parser


def compare_args(args: argparse.Namespace) -> Comparison:
    """Read the files that the flags of `build_parser` name.

    Raises:
        RequestError: unusable input.
    """
    return compare(args.base_dir, args.split, option_letters(args.options), args.gpt4_result, args.our_result)


def main(args: argparse.Namespace) -> None:
    print("\n".join(combined_lines(compare_args(args).verdicts)))


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
