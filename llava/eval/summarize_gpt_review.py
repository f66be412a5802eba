"""Print mean scores of reviews: ours in percent of the reference's, and both times ten."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.judging.review_summary import check_reviews, chosen_files, review_files, score, scores_of, summarize
from llava.eval.scoring.json_files import read_json_lines
from llava.eval.scoring.scorer import add_score_arguments, publish
from llava.program import RequestError, run_program

__all__ = ["scores_of", "summarize"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dir", help="folder of reviews: gpt4_text*, reviews_*, review_*")
    parser.add_argument("-v", "--version", choices=("0314", "0613"), help="version of the judge, from the file's name")
    parser.add_argument("-s", "--select", nargs="*", help="only files whose name contains all of these")
    parser.add_argument("-f", "--files", nargs="*", help="these files, instead of a folder")
    parser.add_argument("-i", "--ignore", nargs="*", help="ids of questions to leave out")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Summarise the chosen files.

    Raises:
        RequestError: no files, unusable files, or --score-file with several.
    """
    if not args.files and not args.dir:
        raise RequestError("no reviews are named; give --files, or --dir with a folder of them")
    files = chosen_files(args.files or review_files(args.dir), args.select or (), args.version)
    if not files:
        raise RequestError("no file of reviews is left by --dir, --select and --version")
    if args.score_file and len(files) > 1:
        raise RequestError(f"--score-file takes the reviews of one experiment, but there are {len(files)} files")
    ignored = set(map(str, args.ignore or ()))
    for path in files:
        reviews = [row for row in read_json_lines(path) if str(row.get("question_id")) not in ignored]
        check_reviews(reviews, path)
        publish(score(reviews, path), args.score_file, args.experiment)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
