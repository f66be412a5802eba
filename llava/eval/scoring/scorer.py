"""A benchmark's scorer as a program: parse its flags, print the score, and write the score file for the report."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.scoring.answers import note
from llava.eval.scoring.score_file import Score, write_score_file


@dataclass(frozen=True)
class Benchmark:
    """A scorer and its command line.

    Attributes:
        description: help text; its first line appears in the list of benchmarks.
        add_arguments: adds the benchmark's own flags to a parser.
        score: scores the answers that the parsed flags name.
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    score: Callable[[argparse.Namespace], Score]


def run_scorer(benchmark: Benchmark, argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Score the answers that a command line names.

    Args:
        argv: the flags; those of this process by default.
        program: name of the program in the help text.

    Raises:
        RequestError: unusable input.
        OSError: a file cannot be read or written.
        ImportError: a package that the scorer needs is missing.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=benchmark.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmark.add_arguments(parser)
    add_score_arguments(parser)
    args = parser.parse_args(argv)
    publish(benchmark.score(args), args.score_file, args.experiment)


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --score-file and --experiment, which upstream's scorers do not have."""
    parser.add_argument("--score-file", help="also write the score to this file, for llava.eval.report")
    parser.add_argument("--experiment", help="row of the report (default: the name of the result file)")


def publish(score: Score, score_file: str | None = None, experiment: str | None = None) -> None:
    """Print a score and, if a path is given, write its score file.

    Raises:
        RequestError: there are no items to compute the score from.
    """
    print("\n".join(score.lines))
    for text in score.notes:
        note(text)
    if score_file is not None:
        write_score_file(score_file, score, experiment or experiment_name(score.result_file))


def experiment_name(result_file: str) -> str:
    """Return the stem of the result file; for `merge.jsonl` (answers joined from chunks), the name of its folder."""
    path = Path(os.path.abspath(os.path.expanduser(result_file)))
    return path.parent.name if path.stem == "merge" else path.stem
