"""The report as Markdown: protocol, tables of measured and published scores, remarks, and what is missing."""

from collections.abc import Sequence
from datetime import datetime, timezone

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
from llava.eval.reporting.results import Result, Results, speed_of, tokens_of

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
    """Escape what Markdown would read as the end of a cell or row."""
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
    """Format a score with the digits of the paper: one decimal, or two."""
    return f"{score:.1f}" if score == round(score, 1) else f"{score:.2f}"


def results_table(
    results: Results, benchmarks: Sequence[str], published: Sequence[PublishedRow], baseline: str | None
) -> str:
    """Return a table of the results, then the published rows; with `baseline`, also the speed relative to it."""
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
    """Return the recorded settings of each experiment; benchmarks are named if their settings differ."""
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
            facts.append(f"not recorded for {', '.join(silent)} (--record-run of the generators; not for judged ones)")
        lines.append(f"- {experiment}: {'; '.join(facts)}")
    return lines


def gap_lines(results: Results) -> list[str]:
    """Return which columns of AcFormer's table are missing, and which scores cover only a part of the questions."""
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
    """Return the remarks of the scorers: subset, protocol, OCR tokens, missing tasks."""
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


def write_report(results: Results, baseline: str, samples: int, with_published: bool, plot: str | None) -> str:
    """Return the report as Markdown.

    Args:
        baseline: experiment that speeds are relative to.
        samples: number of bootstrap samples behind the intervals.
        with_published: quote the papers' rows.
        plot: path of the plot relative to the report; None without one.
    """
    others = sorted({name for by_benchmark in results.values() for name in by_benchmark})
    others = [name for name in others if name not in (*ACFORMER_BENCHMARKS, *VLORA_BENCHMARKS)]
    parts = [
        "# Evaluation",
        f"{datetime.now(timezone.utc):%Y-%m-%d}. Brackets hold 95 % confidence intervals from {samples} bootstrap "
        "samples of the questions (of images or circular groups, if these are scored as a whole) within each category. "
        "They cover the choice of questions, not the variation between trainings, and have no width if all answers are "
        "right, or all wrong. *Published* rows are quoted from the papers, not measured. \\*: a part of the questions.",
        "## Protocol",
        "\n".join(protocol_lines(results)),
        "## Results",
        "POPE: mean F1 of the categories. MME: perception and cognition. SQA: problems with an image. Speed: answers/s"
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
    parts += ["## Missing", "\n".join(gaps) or "Nothing: every score covers all questions of its benchmark."]
    if with_published:
        for title, benchmarks, rows in (
            ("AcFormer's ablation", BENCHMARKS, ACFORMER_ABLATION),
            ("AcFormer's data scaling", SCALING_BENCHMARKS, ACFORMER_SCALING),
        ):
            parts += [f"## {title} (published)", results_table({}, benchmarks, rows, None)]
    return "\n\n".join(parts) + "\n"
