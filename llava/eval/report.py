"""Write one report of all results: the papers' table with confidence intervals, the protocol, and a plot.

    python -m llava.eval.report playground/data/eval --out report.md

Results are score files, which every scorer writes with --score-file, or folders: their score files are those in folders
named `scores`, as the scripts of scripts/v1_5/eval write them.
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
from pathlib import Path

from llava.eval.reporting.markdown import gap_lines, write_report
from llava.eval.reporting.plot import draw, plot_points
from llava.eval.reporting.results import choose_baseline, find_score_files, gather
from llava.files import write_atomically, write_text_atomically
from llava.program import run_program

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="score files, or folders that hold them in scores/")
    parser.add_argument("--out", default="report.md", help="Markdown file; the plot is written next to it, as .png")
    parser.add_argument("--baseline", help="experiment that speeds are relative to (default: the first with an MLP)")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap samples")
    parser.add_argument("--no-published", dest="published", action="store_false", help="without the published rows")
    parser.add_argument("--no-plot", action="store_true")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the report and, unless --no-plot is given, its plot.

    Raises:
        RequestError: unusable results.
        ImportError: matplotlib is missing, and the report has a plot.
    """
    results = gather(find_score_files(args.results), args.samples)
    baseline = choose_baseline(results, args.baseline)
    out = Path(args.out).expanduser()
    plot = out.with_suffix(".png")
    points = [] if args.no_plot else plot_points(results, args.published)
    if points:
        image = draw(points)
        write_atomically(str(plot), lambda temporary: Path(temporary).write_bytes(image))
    elif not args.no_plot:
        logger.warning("No plot: no score file records its visual tokens (--record-run of the generators).")
    text = write_report(results, baseline, args.samples, args.published, plot.name if points else None)
    write_text_atomically(str(out), text)
    print(f"{out}: {len(results)} experiment(s), {sum(map(len, results.values()))} score(s)")
    for line in gap_lines(results):
        print(f"missing {line}")


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
