"""The plot of the report: score against visual tokens, one panel per benchmark, as PNG bytes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.reporting.published import ACFORMER_ABLATION, ACFORMER_BENCHMARKS, ACFORMER_MAIN
from llava.eval.reporting.results import Results, tokens_of
from llava.extras import require_extra

PANELS_PER_ROW = 3
PUBLISHED_MARKS = "o^xvD"


@dataclass(frozen=True)
class Point:
    """One result in one panel.

    Attributes:
        name: entry in the legend: the experiment, or a family of published models.
        interval: 95 % confidence interval; None for a published result.
    """

    name: str
    benchmark: str
    num_visual_tokens: int
    score: float
    interval: tuple[float, float] | None


def plot_points(results: Results, with_published: bool) -> list[Point]:
    """Return the points of the plot: results with known visual tokens, and published ones of the same benchmarks."""
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
    """Return the legend entry that a published row shares with others: there are too many rows for one each."""
    lower = name.lower()
    if lower.startswith("llava"):
        return "LLaVA-1.5 (published)"
    return "AcFormer (published)" if lower.startswith("acformer") else "other connectors (published)"


def draw(points: Sequence[Point]) -> bytes:
    """Draw measured points as filled marks with error bars, published ones in grey; return a PNG file.

    Measured points with the same number of tokens are drawn side by side.

    Raises:
        ImportError: matplotlib is missing; names the extra.
    """
    require_extra("matplotlib", "eval")
    from matplotlib.figure import Figure  # no pyplot: no window system, no global figures

    benchmarks = list(dict.fromkeys(point.benchmark for point in points))
    columns = min(PANELS_PER_ROW, len(benchmarks))
    rows = -(-len(benchmarks) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    names = list(dict.fromkeys(point.name for point in points if point.interval))
    styles = {name: f"C{index % 10}" for index, name in enumerate(names)}
    published = dict.fromkeys(point.name for point in points if not point.interval)
    styles |= {name: PUBLISHED_MARKS[index % len(PUBLISHED_MARKS)] for index, name in enumerate(published)}
    for axes, benchmark in zip(panels, benchmarks):
        _draw_panel(axes, benchmark, [point for point in points if point.benchmark == benchmark], styles)
    for axes in panels[len(benchmarks) :]:
        axes.set_axis_off()
    handles = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels())}
    handles = {name: handles[name] for name in styles}  # measured ones first
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_panel(axes: Any, benchmark: str, points: Sequence[Point], styles: dict[str, str]) -> None:
    """Draw one benchmark; `styles` has the colour of each measured name and the mark of each published one."""
    ticks = sorted({point.num_visual_tokens for point in points})
    smallest = min((tick for tick in ticks if tick > 0), default=1)
    for point in points:
        if point.interval is None:
            mark = styles[point.name]
            place = (point.num_visual_tokens, point.score)
            axes.plot(*place, mark, markerfacecolor="none", color="grey", markersize=5, label=point.name)
            continue
        same = [p.name for p in points if p.interval and p.num_visual_tokens == point.num_visual_tokens]
        aside = 0.06 * (same.index(point.name) - (len(same) - 1) / 2)
        tokens = point.num_visual_tokens + aside * max(point.num_visual_tokens, smallest)
        error = [[max(0.0, point.score - point.interval[0])], [max(0.0, point.interval[1] - point.score)]]
        axes.errorbar(tokens, point.score, yerr=error, fmt="s", color=styles[point.name], capsize=3, label=point.name)
    axes.set_title(benchmark)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.3)  # a logarithmic axis has no place for 0 tokens
    readable = [tick for place, tick in enumerate(ticks) if place == 0 or tick > 1.1 * ticks[place - 1]]  # 145, not 146
    axes.set_xticks(readable, [str(tick) for tick in readable], fontsize=8)
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.15)
    axes.grid(alpha=0.3)
    axes.set_xlabel("visual tokens", fontsize=8)
