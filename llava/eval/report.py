"""One report of all results: the papers' table, with confidence intervals, protocol, and a plot.

    python -m llava.eval.report playground/data/eval --out report.md

Results are the score files that every scorer writes with --score-file, or folders: of these, the files in folders named
`scores`, where the scripts of scripts/v1_5/eval put them.
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from llava.eval.reporting.plot import Point, draw
from llava.eval.reporting.published import (
    ACFORMER_ABLATION,
    ACFORMER_BENCHMARKS,
    ACFORMER_MAIN,
    ACFORMER_SCALING,
    BENCHMARKS,
    SCALING_BENCHMARKS,
    VLORA_BENCHMARKS,
    VLORA_MAIN,
    PublishedRow,
)
from llava.eval.reporting.results import Result, Results, choose_baseline, find_score_files, gather, speed_of, tokens_of
from llava.files import write_atomically, write_text_atomically
from llava.program import run_program

logger = logging.getLogger(__name__)

SCRIPTS = {
    "POPE": "pope.sh", "MME": "mme.sh", "MMB": "mmbench.sh", "MM-Vet": "mmvet.sh", "TextVQA": "textvqa.sh",
    "GQA": "gqa.sh", "VQAv2": "vqav2.sh", "VizWiz": "vizwiz.sh", "SQA": "sqa.sh",
}  # fmt: skip
PROTOCOL_FIELDS = (
    *("connector", "num_visual_tokens", "conv_mode", "temperature", "top_p", "num_beams", "max_new_tokens"),
    *("batch_size", "device", "dtype"),
)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(map(_one_cell, line))} |" for line in lines)


def _one_cell(text: str) -> str:
    """What Markdown would take for the end of a cell or row is made harmless."""
    return " ".join(text.split()).replace("|", "\\|")


def _cell(result: Result | None) -> str:
    if result is None:
        return "–"
    low, high = result.interval
    partial = "\\*" if result.source.answered < result.source.expected else ""
    return f"**{result.score:.1f}**{partial} [{low:.1f}, {high:.1f}]"


def _published_rows(rows: Sequence[PublishedRow], benchmarks: Sequence[str], with_speed: bool) -> list[list[str]]:
    lines = []
    for row in rows:
        scores = [_as_published(row.scores[name]) if name in row.scores else "–" for name in benchmarks]
        tokens = "–" if row.num_visual_tokens is None else str(row.num_visual_tokens)
        speed = [f"{row.speed:.2f}" if row.speed else "–"] if with_speed else []
        lines.append([f"*{row.name} (published)*", tokens, *scores, *speed])
    return lines


def _as_published(score: float) -> str:
    """With the paper's digits: one behind the point, or two."""
    return f"{score:.1f}" if score == round(score, 1) else f"{score:.2f}"


def results_table(
    results: Results, benchmarks: Sequence[str], published: Sequence[PublishedRow], baseline: str | None
) -> str:
    """A table of the results and then the published rows; with `baseline`, also the speed relative to it."""
    rows = []
    for name, by_benchmark in results.items():
        tokens = tokens_of(by_benchmark)
        row = [name, "?" if tokens is None else str(tokens), *(_cell(by_benchmark.get(one)) for one in benchmarks)]
        if baseline:
            speed = speed_of(by_benchmark, results[baseline])
            row.append("?" if speed is None else f"{speed:.2f}")
        rows.append(row)
    header = ["model", "visual tokens", *benchmarks, *(["speed"] if baseline else [])]
    return _table(header, rows + _published_rows(published, benchmarks, baseline is not None))


def protocol_lines(results: Results) -> list[str]:
    """What the answers of each experiment tell of how they were made; benchmarks are named where they differ."""
    lines = []
    for experiment, by_benchmark in results.items():
        runs = {name: result.source.run for name, result in by_benchmark.items() if name != "MME-P"}
        silent = [name for name, run in runs.items() if not run]
        facts = []
        for field in PROTOCOL_FIELDS:
            values: dict[str, list[str]] = {}
            for name, run in runs.items():
                if field in run:
                    values.setdefault(str(run[field]), []).append(name)
            if len(values) == 1:
                facts.append(f"{field} {next(iter(values))}")
            elif values:
                facts.append(f"{field} " + ", ".join(f"{value} ({', '.join(on)})" for value, on in values.items()))
        if silent:
            facts.append(f"not told for {', '.join(silent)} (--record-run of the generators; judged ones never tell)")
        lines.append(f"- {experiment}: {'; '.join(facts)}")
    return lines


def gap_lines(results: Results) -> list[str]:
    """What is missing of AcFormer's table, and which scores rest on a part of the questions."""
    lines = []
    for experiment, by_benchmark in results.items():
        for name in ACFORMER_BENCHMARKS:
            if name not in by_benchmark:
                lines.append(f"- {experiment}: no score file of {name}; `bash scripts/v1_5/eval/{SCRIPTS[name]}`")
        for name, result in by_benchmark.items():
            source = result.source
            if name != "MME-P" and source.answered < source.expected:
                lines.append(f"- {experiment}: {name} has answers to {source.answered} of {source.expected} questions")
    return lines


def note_lines(results: Results) -> list[str]:
    """What the scorers say of a score beside numbers: subset, protocol, OCR tokens, tasks that are missing."""
    lines = []
    for experiment, by_benchmark in results.items():
        for name, result in by_benchmark.items():
            if name == "MME-P":
                continue
            for key, value in result.source.details.items():
                text = ", ".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
                if isinstance(text, str) and text:
                    lines.append(f"- {experiment}, {name}: {key.replace('_', ' ')}: {text}")
    return lines


def plot_points(results: Results, with_published: bool) -> list[Point]:
    """The points of the plot: results whose visual tokens are known, and published ones of the same benchmarks."""
    points = [
        Point(name, benchmark, tokens, by_benchmark[benchmark].score, by_benchmark[benchmark].interval)
        for benchmark in ACFORMER_BENCHMARKS
        for name, by_benchmark in results.items()
        if benchmark in by_benchmark and (tokens := tokens_of(by_benchmark)) is not None
    ]
    shown = {point.benchmark for point in points}
    if with_published:
        points += [
            Point(_family(row.name), benchmark, row.num_visual_tokens, score, None)
            for row in (*ACFORMER_MAIN, *ACFORMER_ABLATION)
            for benchmark, score in row.scores.items()
            if benchmark in shown and row.num_visual_tokens is not None
        ]
    return points


def _family(name: str) -> str:
    """A published row's mark in the plot: there are too many rows for one mark each."""
    lower = name.lower()
    if lower.startswith("llava"):
        return "LLaVA-1.5 (published)"
    return "AcFormer (published)" if lower.startswith("acformer") else "other connectors (published)"


def write_report(results: Results, baseline: str, samples: int, with_published: bool, plot: str | None) -> str:
    """The report as Markdown; `plot` is the plot's place relative to it, if there is one."""
    others = sorted({name for by_benchmark in results.values() for name in by_benchmark})
    others = [name for name in others if name not in (*ACFORMER_BENCHMARKS, *VLORA_BENCHMARKS)]
    parts = [
        "# Evaluation",
        f"{datetime.now(timezone.utc):%Y-%m-%d}. In brackets 95 % confidence intervals: {samples} bootstrap samples of "
        "the questions (of pictures or circular groups where these are scored as a whole), within each category. They "
        "tell how far the choice of questions matters, not what another training would give, and nothing where all are "
        "right, or all wrong. *Published* rows are quoted from the papers, not measured. \\*: a part of the questions.",
        "## Protocol",
        "\n".join(protocol_lines(results)),
        "## Results",
        "POPE: mean F1 of the categories. MME: perception and cognition. SQA: problems with a picture. Speed: answers/s"
        f" relative to {baseline}, from benchmarks with the same device, precision and batch size; published: the "
        "throughput of stage 1 relative to LLaVA-1.5.",
        results_table(results, ACFORMER_BENCHMARKS, ACFORMER_MAIN if with_published else (), baseline),
    ]
    if with_published or any(name in by for by in results.values() for name in set(VLORA_BENCHMARKS) - {"MMB", "SQA"}):
        parts += [
            "## The columns of VLoRA's paper",
            "MME-P: perception alone. The published rows were measured with VLMEvalKit.",
            results_table(results, VLORA_BENCHMARKS, VLORA_MAIN if with_published else (), None),
        ]
    if others:
        parts += ["## Other benchmarks", results_table(results, others, (), None)]
    if plot:
        parts += ["## Score against visual tokens", f"![score against visual tokens]({plot})"]
    notes, gaps = note_lines(results), gap_lines(results)
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    parts += ["## Missing", "\n".join(gaps) or "Nothing: every score rests on all questions of its benchmark."]
    if with_published:
        for title, benchmarks, rows in (
            ("AcFormer's ablation", BENCHMARKS, ACFORMER_ABLATION),
            ("AcFormer's data scaling", SCALING_BENCHMARKS, ACFORMER_SCALING),
        ):
            parts += [f"## {title} (published)", results_table({}, benchmarks, rows, None)]
    return "\n\n".join(parts) + "\n"


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: results that cannot be used.
        ImportError: matplotlib is missing, and a plot is wanted.
    """
    results = gather(find_score_files(args.results), args.samples)
    baseline = choose_baseline(results, args.baseline)
    out = Path(args.out).expanduser()
    points = [] if args.no_plot else plot_points(results, args.published)
    if not points and not args.no_plot:
        logger.warning("No plot: no score file tells its visual tokens (--record-run of the generators).")
    plot = out.with_suffix(".png")
    if points:
        picture = draw(points)
        write_atomically(str(plot), lambda temporary: _write_bytes(temporary, picture))
    text = write_report(results, baseline, args.samples, args.published, plot.name if points else None)
    write_text_atomically(str(out), text)
    print(f"{out}: {len(results)} experiment(s), {sum(map(len, results.values()))} score(s)")
    for line in gap_lines(results):
        print(f"missing {line}")


def _write_bytes(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="score files, or folders that hold them in scores/")
    parser.add_argument("--out", default="report.md", help="Markdown file; the plot goes beside it, as .png")
    parser.add_argument("--baseline", help="experiment that speeds are relative to (default: the first with an MLP)")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap samples")
    parser.add_argument("--no-published", dest="published", action="store_false", help="without the published rows")
    parser.add_argument("--no-plot", action="store_true")
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
