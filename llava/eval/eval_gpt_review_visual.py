"""A judge compares two answers; captions and boxes of objects tell of the picture (contract: eval.md 4.6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Mapping
from typing import Any

from llava.eval import eval_gpt_review_bench
from llava.eval.json_files import read_json_lines
from llava.eval.judge import judge_from
from llava.eval.review import QUESTION_FIELDS, compare_answers, read_contexts, read_rules, review_all
from llava.program import run_program


def describe(context: Mapping[str, Any]) -> str:
    """The captions, an empty line, and one line for each object."""
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in context["instances"]]
    return "\n".join(context["captions"]) + "\n\n" + "\n".join(boxes)


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: the files do not belong together, or the judge refuses.
        IncompleteError (an AssertionError): a category has no rule.
    """
    reference, candidate = (read_json_lines(path, {"text": str}) for path in args.answer_list)
    comparisons = compare_answers(
        read_json_lines(args.question, QUESTION_FIELDS),
        reference,
        candidate,
        read_rules(args.rule),
        lambda question: question["category"],
        read_contexts(args.context, describe, {"captions": list[str], "instances": list}),
    )
    review_all(comparisons, judge_from(args), args.output, args.judge_parallel, append=True)


def build_parser() -> argparse.ArgumentParser:
    return eval_gpt_review_bench.build_parser(__doc__)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
