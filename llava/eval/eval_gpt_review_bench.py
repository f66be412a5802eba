"""LLaVA-Bench (in the wild): a judge compares two answers; a caption tells of the picture (contract: eval.md 4.6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from llava.eval.judging.judge import add_judge_arguments, judge_from
from llava.eval.judging.reviews import QUESTION_FIELDS, Record, compare_answers, read_contexts, read_rules, review_all
from llava.eval.scoring.json_files import read_json_lines
from llava.program import run_program


def describe(context: Record) -> str:
    """The caption; several become one line each."""
    caption = context["caption"]
    return "\n".join(caption) if isinstance(caption, list) else caption


def review_pictures(
    args: argparse.Namespace,
    category_of: Callable[[Record], str],
    describe: Callable[[Record], str],
    context_fields: Mapping[str, Any],
) -> None:
    """Let the judge compare the answers to questions about pictures; also for `eval_gpt_review_visual`.

    Args:
        category_of: question -> key of its rule.
        describe: line of the context file -> what stands for the picture.
        context_fields: what such a line must hold.

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
        category_of,
        read_contexts(args.context, describe, context_fields),
    )
    review_all(comparisons, judge_from(args), args.output, args.judge_parallel, append=True)


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: see `review_pictures`.
    """
    review_pictures(args, lambda question: f"llava_bench_{question['category']}", describe, {"caption": str | list})


def build_parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """Also the flags of `eval_gpt_review_visual`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-q", "--question", required=True, help="JSON lines: question_id, text, category, image")
    parser.add_argument("-c", "--context", required=True, help="JSON lines: image, and what stands for it")
    parser.add_argument("-a", "--answer-list", nargs=2, required=True, metavar=("REFERENCE", "OURS"))
    parser.add_argument("-r", "--rule", help="prompts by category (default: those of this package)")
    parser.add_argument("-o", "--output", required=True, help="reviews; a run goes on after the lines that are there")
    add_judge_arguments(parser, model="gpt-4-0314", parallel=1)
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
