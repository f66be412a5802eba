"""Convert answers to the predictions that GQA's own scorer reads."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse

from llava.eval.scoring.answers import ANSWER_FIELDS
from llava.eval.scoring.gqa import as_predictions
from llava.eval.scoring.json_files import read_json_lines, write_json
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--dst", required=True, help="predictions to write, JSON")
    return parser


def main(args: argparse.Namespace) -> None:
    write_json(args.dst, as_predictions(read_json_lines(args.src, ANSWER_FIELDS)))


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
