"""A judge compares two answers to a question without a picture, several at once (contract: eval.md 4.6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.judging.judge import add_judge_arguments, judge_from
from llava.eval.judging.reviews import compare_answers, read_rules, review_all
from llava.eval.scoring.json_files import read_json_lines
from llava.program import run_program


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: the files do not belong together, or the judge refuses.
        IncompleteError (an AssertionError): the rules lack `default`, and a category is not among them.
    """
    rules = read_rules(args.rule)
    reference, candidate = (read_json_lines(path, {"text": str}) for path in args.answer_list)

    def category_of(question: dict) -> str:
        category = str(question.get("category"))
        return category if category in rules else "default"

    questions = read_json_lines(args.question, {"question_id": str | int, "text": str})
    comparisons = compare_answers(questions, reference, candidate, rules, category_of)
    review_all(comparisons, judge_from(args, pause=3.0), args.output, args.judge_parallel)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-q", "--question", required=True, help="JSON lines: question_id, text, perhaps category")
    parser.add_argument("-a", "--answer-list", nargs=2, required=True, metavar=("REFERENCE", "OURS"))
    parser.add_argument("-r", "--rule", help="prompts by category (default: those of this package)")
    parser.add_argument("-o", "--output", required=True, help="reviews; written anew")
    add_judge_arguments(parser, model="gpt-4", parallel=8)
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
