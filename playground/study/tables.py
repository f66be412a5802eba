"""Parts that the reports of the study share: statistics over seeds, Markdown tables, the protocol's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from ..world.language import CATEGORIES

KINDS = (*CATEGORIES, "mean")

Result = dict[str, Any]
Rows = list[list[str]]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the latter with less than two values."""
    return mean(values), stdev(values) if len(values) > 1 else None


def scores(results: Iterable[Result], kind: str = "mean") -> list[float]:
    """One number per seed: the accuracy of a question kind, or the mean over the kinds, in percent."""
    return [result["mean"] if kind == "mean" else result["accuracy"][kind] for result in results]


def cell(values: Sequence[float]) -> str:
    """`81.3 ± 1.2`, or without a deviation for one value, or a dash for none."""
    if not values:
        return "–"
    average, deviation = spread(values)
    return f"{average:.1f}" if deviation is None else f"{average:.1f} ± {deviation:.1f}"


def table(header: Sequence[str], rows: Rows) -> str:
    """A Markdown table; numbers on the right, the first column on the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def facts(rows: Rows) -> str:
    """A Markdown table of names and values, without a header."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])


def training_rows(protocol: dict[str, Any], seeds: Sequence[int]) -> Rows:
    """The protocol's data, stages and models."""
    steps = "{} steps of {} samples, learning rate {:g}"
    first, second = (
        steps.format(*(protocol[f"{stage}_{key}"] for key in ("steps", "batch", "learning_rate")))
        for stage in ("stage1", "stage2")
    )
    return [
        ["data", f"`playground.make_data`: {protocol['pictures']} training images of 96 x 96, "
                 f"{protocol['turns']} questions each, data seed {protocol['data_seed']}"],
        ["stage 1", f"captions (`--version plain`), connector only: {first}"],
        ["stage 2", f"conversations (`--version v1`), connector and language model: {second}"],
        ["both", "AdamW, cosine schedule, warm-up 0.03, no weight decay, fp32"],
        ["seeds", ", ".join(map(str, seeds)) + " (connector's initialisation, order of samples)"],
        ["tower", "tiny-clip: 4 layers, width 128, 4 heads, 8 x 8 = 64 patches; frozen, features of layer -2"],
        ["language model", "tiny-llama: 4 layers, width 128, vocabulary 570"],
        ["resampler", f"{protocol['resampler_depth']} layers, {protocol['resampler_heads']} heads of "
                      f"{protocol['resampler_dim_head']}, where the connector has one"],
    ]  # fmt: skip


def evaluation_row(protocol: dict[str, Any]) -> list[str]:
    questions = f"{protocol['questions']} held-out questions of each of {len(CATEGORIES)} kinds"
    return ["evaluation", f"{questions}, `llava.eval.model_vqa_loader`, greedy, exact match"]


def origin_rows(results: Sequence[Result], command: str, further_commits: Iterable[str] = ()) -> Rows:
    """Machine, date, commit and command of the results."""
    dates = sorted({result["date"] for result in results})
    commits = sorted({result["commit"] for result in results} | set(further_commits))
    return [
        ["machine", "; ".join(sorted({result["machine"] for result in results}))],
        ["date", " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "–"],
        ["commit", ", ".join(commits) + (" (+: with uncommitted changes)" if any("+" in c for c in commits) else "")],
        ["command", f"`{command}`"],
    ]


def sampling_error(results: Sequence[Result], protocol: dict[str, Any]) -> float:
    """Standard error of a mean accuracy that the finite number of questions gives, in points; binomial."""
    share = mean([score / 100 for score in scores(results)] or [0.5])
    return 100 * (share * (1 - share) / (protocol["questions"] * len(CATEGORIES))) ** 0.5
