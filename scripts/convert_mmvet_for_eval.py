"""Convert answers to the format of MM-Vet's evaluation server: an object by question id."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse

from llava.eval.scoring.answers import ANSWER_FIELDS
from llava.eval.scoring.json_files import read_json_lines, write_json
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--dst", required=True, help="file to write, JSON")
    return parser


def main(args: argparse.Namespace) -> None:
    answers = read_json_lines(args.src, ANSWER_FIELDS)
    write_json(args.dst, {f"v1_{answer['question_id']}": answer["text"] for answer in answers}, indent=2)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
