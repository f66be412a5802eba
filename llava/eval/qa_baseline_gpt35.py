"""Answers of a text-only model behind an OpenAI-compatible server, as a baseline (contract: eval.md 1.7)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.answering.answers_file import short_uuid
from llava.eval.judging.judge import (
    Judge,
    JudgeUnreachableError,
    QuestionRefusedError,
    add_judge_arguments,
    judge_from,
    map_in_order,
)
from llava.eval.scoring.json_files import read_json_lines, write_json_lines
from llava.program import run_program

logger = logging.getLogger(__name__)

SYSTEM = "You are a helpful assistant."
MODEL_ID = "gpt-3.5-turbo:20230327"
FAILED = "#ERROR#"


def answer(question: Mapping[str, Any], judge: Judge) -> dict[str, Any]:
    """One line of the answers; its text is FAILED where no reply came, or the server refuses this question.

    Raises:
        RequestError: the server refuses, as it would all other questions.
    """
    try:
        text = judge.ask(SYSTEM, question["text"])
    except (JudgeUnreachableError, QuestionRefusedError) as error:
        logger.warning("question %s: %s", question["question_id"], error)
        text = FAILED
    return {
        "answer_id": short_uuid(),
        "question_id": question["question_id"],
        "model_id": MODEL_ID,
        "text": text,
    }


def answer_all(questions: Sequence[Mapping[str, Any]], judge: Judge, parallel: int) -> list[dict[str, Any]]:
    """The answers, sorted by `question_id`, numbers before texts."""
    answers = list(map_in_order(lambda question: answer(question, judge), questions, parallel))
    return sorted(answers, key=lambda record: (isinstance(record["question_id"], str), record["question_id"]))


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: bad question file, or the server refuses.
    """
    questions = read_json_lines(args.question, {"question_id": str | int, "text": str})
    write_json_lines(args.output, answer_all(questions, judge_from(args), args.judge_parallel))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-q", "--question", required=True, help="JSON lines: question_id, text")
    parser.add_argument("-o", "--output", required=True, help="answers")
    add_judge_arguments(parser, model="gpt-3.5-turbo", parallel=32)
    parser.set_defaults(judge_retries=2)
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
