"""Score answers to TextVQA, as upstream's program of this name does: see llava.eval.scoring.textvqa."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.scoring.scorer import add_score_arguments, publish
from llava.eval.scoring.textvqa import prompt_processor, score
from llava.program import RequestError, run_program

__all__ = ["eval_single", "prompt_processor"]


def eval_single(
    annotation_file: str, result_file: str, score_file: str | None = None, experiment: str | None = None
) -> None:
    """Print upstream's lines for one answers file; optionally also write a score file.

    Raises:
        RequestError: unusable input.
    """
    print(os.path.splitext(os.path.basename(result_file))[0])
    publish(score(annotation_file, result_file), score_file, experiment)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", help="answers of the generator, JSON lines")
    parser.add_argument("--result-dir", help="score all .jsonl files of this folder")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Score one file, a folder of them, or both.

    Raises:
        RequestError: nothing to score, or unusable input.
    """
    if args.result_file is None and args.result_dir is None:
        raise RequestError("nothing to score: give --result-file or --result-dir")
    if args.result_dir is not None and args.score_file is not None:
        raise RequestError("--score-file takes the score of one --result-file, not of a --result-dir")
    if args.result_file is not None:
        eval_single(args.annotation_file, args.result_file, args.score_file, args.experiment)
    if args.result_dir is not None:
        for name in sorted(os.listdir(args.result_dir)):
            if name.endswith(".jsonl"):
                eval_single(args.annotation_file, os.path.join(args.result_dir, name))
            else:
                print(f"Skipping {name}")


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
