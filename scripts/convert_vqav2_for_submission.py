"""Convert answers to a submission to VQAv2's evaluation server.

The server takes an answer to every question of the full test set, even for test-dev; the others are submitted empty.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse

from llava.eval.scoring.answer_normalisation import normalise_answer
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import path_below, read_json_lines, read_readable_lines, write_json
from llava.program import run_program

TEST_QUESTIONS = "llava_vqav2_mscoco_test2015.jsonl"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="./playground/data/eval/vqav2", help="folder of the benchmark")
    parser.add_argument("--ckpt", required=True, help="name of the checkpoint: folder of the answers")
    parser.add_argument("--split", required=True, help="name of the question file: folder above it")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the submission, in the order of the questions.

    Raises:
        RequestError: unusable input.
    """
    source = path_below(args.dir, os.path.join("answers", args.split, args.ckpt, "merge.jsonl"))
    target = path_below(args.dir, os.path.join("answers_upload", args.split, f"{args.ckpt}.json"))
    questions = read_json_lines(os.path.join(args.dir, TEST_QUESTIONS), {"question_id": str | int})
    answers, unreadable = read_readable_lines(source, ANSWER_FIELDS)
    by_id, coverage = match_answers([question["question_id"] for question in questions], answers, source)
    total = len({str(answer["question_id"]) for answer in answers})
    print(f"total results: {total}, total split: {len(questions)}, error_line: {unreadable}")
    for line in coverage.warnings("are submitted empty"):
        note(line)
    rows = []
    for question in questions:
        answer = by_id.get(str(question["question_id"]))
        text = "" if answer is None else normalise_answer(answer["text"])
        rows.append({"question_id": question["question_id"], "answer": text})
    write_json(target, rows)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
