"""Answer questions with a text-only model behind an OpenAI-compatible server: see llava.eval.judging.baseline."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.judging.arguments import add_judge_arguments, judge_options
from llava.eval.judging.baseline import answer_all
from llava.eval.judging.judge import Judge
from llava.eval.scoring.json_files import read_json_lines, write_json_lines
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-q", "--question", required=True, help="JSON lines: question_id, text")
    parser.add_argument("-o", "--output", required=True, help="answers, JSON lines")
    add_judge_arguments(parser, model="gpt-3.5-turbo", parallel=32)
    parser.set_defaults(judge_retries=2)
    return parser


def main(args: argparse.Namespace) -> None:
    questions = read_json_lines(args.question, {"question_id": str | int, "text": str})
    write_json_lines(args.output, answer_all(questions, Judge(judge_options(args)), args.judge_parallel))


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
