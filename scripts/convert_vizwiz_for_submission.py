"""Convert answers to a submission to VizWiz's evaluation server."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse

from llava.eval.scoring.answer_normalisation import normalise_answer
from llava.eval.scoring.answers import ANSWER_FIELDS, IncompleteError, match_answers, note
from llava.eval.scoring.json_files import read_json_lines, read_readable_lines, write_json
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True, help="the question file, JSON lines")
    parser.add_argument("--result-file", required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--result-upload-file", required=True, help="file to write, JSON")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the submission, in the order of the questions.

    Raises:
        IncompleteError: a question has no answer; the server takes complete submissions only.
        RequestError: unusable input.
    """
    questions = read_json_lines(args.annotation_file, {"question_id": str | int, "image": str})
    answers, unreadable = read_readable_lines(args.result_file, ANSWER_FIELDS)
    ids = [question["question_id"] for question in questions]
    by_id, coverage = match_answers(ids, answers, args.result_file)
    total = len({str(answer["question_id"]) for answer in answers})
    print(f"total results: {total}, total split: {len(questions)}, error_line: {unreadable}")
    for line in coverage.warnings("cannot be submitted"):
        note(line)
    if coverage.missing:
        raise IncompleteError(
            f"{args.result_file} lacks {len(coverage.missing)} of the {coverage.expected} answers; the server takes "
            "complete submissions only: run the generator on the rest"
        )
    write_json(
        args.result_upload_file,
        [
            {"image": question["image"], "answer": normalise_answer(by_id[str(question["question_id"])]["text"])}
            for question in questions
        ],
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
