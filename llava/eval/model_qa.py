"""Answer questions without images with a plain language model."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.conversation import default_conversation
from llava.eval.answering.answers_file import answer_record
from llava.eval.answering.arguments import add_run_arguments, options_from
from llava.eval.answering.options import DecodingOptions, RunOptions
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import Selection
from llava.eval.scoring.json_files import read_json_lines
from llava.program import run_program


def open_prompt(message: str, num_images: int, model_config: Any, conv_mode: str) -> str:
    """Return the question as a user turn of the default template, without an open assistant turn, as upstream does."""
    conversation = default_conversation.copy()
    conversation.append_message(conversation.roles[0], message)
    return conversation.get_prompt()


def reply_of(text: str) -> str:
    """Return the assistant's turn in the text after the prompt: without the role, up to the separator."""
    role = f"{default_conversation.roles[1]}:"
    end = default_conversation.sep2 or default_conversation.sep
    return text.strip().removeprefix(role).split(end)[0].strip()


def qa_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the standard line without the prompt."""
    line = answer_record(query.fields["question_id"], query.message, reply_of(text), model, metadata)
    del line["prompt"]
    return line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-name", type=str, default="facebook/opt-350m")
    parser.add_argument("--question-file", type=str, default="tables/question.jsonl")
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    add_run_arguments(parser)
    return parser


def eval_model(model_name: str, questions_file: str, answers_file: str, args: Any = None) -> None:
    """Write the answers, sampled at temperature 0.7.

    Args:
        model_name: path of a causal language model.
        args: object with the flags of `add_run_arguments` as attributes; None for their defaults.

    Raises:
        RequestError: bad flags or question file; see `answer_queries`.
    """
    from llava.eval.answering.run import answer_queries  # loads torch

    rows = read_json_lines(questions_file, {"question_id": str | int, "text": str})
    questions = options_from(Selection, args).of(rows)
    answer_queries(
        [Query({"question_id": question["question_id"]}, question["text"]) for question in questions],
        options_from(RunOptions, args, model_path=model_name, answers_file=answers_file, conv_mode="default"),
        DecodingOptions(temperature=0.7),
        to_line=qa_line,
        key_fields=("question_id",),
        make_prompt=open_prompt,
        num_workers=0,
    )


def main(args: argparse.Namespace) -> None:
    eval_model(args.model_name, args.question_file, args.answers_file, args)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
