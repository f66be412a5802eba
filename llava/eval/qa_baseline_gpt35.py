"""Answer questions with a text-only model behind an OpenAI-compatible server, as a baseline."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.answering.answers_file import short_uuid
from llava.eval.judging.arguments import add_judge_arguments, judge_options
from llava.eval.judging.judge import Judge, JudgeUnreachableError, QuestionRefusedError, map_in_order
from llava.eval.scoring.json_files import read_json_lines, write_json_lines
from llava.program import run_program

logger = logging.getLogger(__name__)

SYSTEM = "You are a helpful assistant."
MODEL_ID = "gpt-3.5-turbo:20230327"
FAILED = "#ERROR#"


def answer(question: Mapping[str, Any], judge: Judge) -> dict[str, Any]:
    """Return one line of the answers file; its text is FAILED if the server refuses this question or does not reply.

    Raises:
        RequestError: the server would refuse all other questions too.
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
    """Return the answers sorted by `question_id`, numbers before texts."""
    answers = list(map_in_order(lambda question: answer(question, judge), questions, parallel))
    return sorted(answers, key=lambda record: (isinstance(record["question_id"], str), record["question_id"]))


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
