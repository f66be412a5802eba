"""Write the data of a web page that compares models: see llava.eval.reporting.webpage."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.reporting.webpage import read_table
from llava.eval.scoring.json_files import write_json
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="table", help="folder of questions, answers and reviews")
    parser.add_argument("--output", default=os.path.join("webpage", "data.json"))
    return parser


def main(args: argparse.Namespace) -> None:
    write_json(args.output, read_table(args.table), indent=2)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
