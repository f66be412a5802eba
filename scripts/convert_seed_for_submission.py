"""Score answers to SEED-Bench and write the file to submit (contract: eval.md 3, 4.5)."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse

from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import read_json_lines, write_json_lines
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.eval.scoring.seed import question_key, read_annotation, score_answers
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", type=str, required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", type=str, required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--result-upload-file", type=str, required=True, help="file to write, JSON lines")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    annotation = read_annotation(args.annotation_file)
    answers = read_json_lines(args.result_file, ANSWER_FIELDS)
    ids = [question["question_id"] for question in annotation["questions"]]
    by_id, coverage = match_answers(ids, answers, args.result_file, key=question_key)
    result = score_answers(annotation, by_id)
    print("\n".join(result.lines()))
    for line in coverage.warnings("count as wrong, with an empty prediction in the file to submit"):
        note(line)
    empty = {"text": ""}
    write_json_lines(
        args.result_upload_file,
        [{"question_id": name, "prediction": by_id.get(question_key(name), empty)["text"]} for name in ids],
    )
    groups = {question_key(question["question_id"]): question["data_type"] for question in annotation["questions"]}
    write_score(
        args.score_file,
        "SEED",
        experiment_name(args.result_file, args.experiment),
        "mean",
        [item(name, int(right), groups[name]) for name, right in result.right.items()],
        details={"accuracy": result.accuracy, **result.kinds, "types": result.types},
        expected=coverage.expected,
        answered=coverage.answered,
        answers=answers,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
