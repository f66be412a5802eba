"""A judge compares two answers; captions and boxes of objects tell of the picture (contract: eval.md 4.6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval import eval_gpt_review_bench
from llava.eval.judging.reviews import Record
from llava.program import run_program


def describe(context: Record) -> str:
    """The captions, an empty line, and one line for each object."""
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in context["instances"]]
    return "\n".join(context["captions"]) + "\n\n" + "\n".join(boxes)


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: see `review_pictures`.
    """
    fields = {"captions": list[str], "instances": list}
    eval_gpt_review_bench.review_pictures(args, lambda question: question["category"], describe, fields)


def build_parser() -> argparse.ArgumentParser:
    return eval_gpt_review_bench.build_parser(__doc__)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
