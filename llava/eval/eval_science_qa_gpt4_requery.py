"""Score GPT-4's answers to ScienceQA after seeing ours: see llava.eval.scoring.science_qa_gpt4."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval import eval_science_qa_gpt4
from llava.eval.scoring.science_qa_gpt4 import score_requery
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = eval_science_qa_gpt4.build_parser(__doc__)
    parser.add_argument("--requery-result", required=True, help="answers to the second query, JSON lines")
    parser.add_argument("--output-result", required=True, help="accuracy, choices and replies, JSON")
    return parser


def main(args: argparse.Namespace) -> None:
    comparison = eval_science_qa_gpt4.compare_args(args)
    print("\n".join(score_requery(comparison, args.requery_result, args.output_result)))


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
