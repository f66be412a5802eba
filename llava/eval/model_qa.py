"""Answers of a plain language model to a file of questions without pictures (contract: eval.md 1.7)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from types import SimpleNamespace
from typing import Any

from llava.conversation import default_conversation
from llava.eval.answering.answerer import AnswerOptions
from llava.eval.answering.answers_file import answer_record
from llava.eval.answering.arguments import add_run_arguments
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import select_questions
from llava.eval.answering.run import answer_queries
from llava.eval.scoring.json_files import read_json_lines
from llava.program import run_program


def open_prompt(message: str, num_images: int, model_config: Any, conv_mode: str) -> str:
    """The question as a user's turn of the default template; the model names the assistant itself."""
    conversation = default_conversation.copy()
    conversation.append_message(conversation.roles[0], message)
    return conversation.get_prompt()


def reply_of(text: str) -> str:
    """What the assistant says in the text behind the prompt: without its name, up to the end of its turn."""
    role = f"{default_conversation.roles[1]}:"
    end = default_conversation.sep2 or default_conversation.sep
    return text.strip().removeprefix(role).split(end)[0].strip()


def qa_line(query: Query, text: str, model: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The standard line without the prompt."""
    line = answer_record(query.fields["question_id"], query.message, reply_of(text), model, metadata)
    del line["prompt"]
    return line


def eval_model(model_name: str, questions_file: str, answers_file: str, **run: Any) -> None:
    """Write the answers, sampled at temperature 0.7.

    Args:
        model_name: path of a causal language model.
        run: the flags of `add_run_arguments`, if any.

    Raises:
        RequestError: bad flags or question file; see `answer_queries`.
    """
    args = SimpleNamespace(**run, model_path=model_name, model_base=None, answers_file=answers_file)
    questions = select_questions(read_json_lines(questions_file, {"question_id": str | int, "text": str}), args)
    queries = [Query({"question_id": question["question_id"]}, question["text"]) for question in questions]
    answer_queries(
        queries,
        args,
        AnswerOptions(temperature=0.7),
        "default",
        to_line=qa_line,
        key_fields=("question_id",),
        make_prompt=open_prompt,
        num_workers=0,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-name", type=str, default="facebook/opt-350m")
    parser.add_argument("--question-file", type=str, default="tables/question.jsonl")
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    add_run_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    run = dict(vars(args))
    eval_model(run.pop("model_name"), run.pop("question_file"), run.pop("answers_file"), **run)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
