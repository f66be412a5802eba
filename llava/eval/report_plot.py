"""The report's plot: each benchmark's score against visual tokens, as PNG bytes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.extras import require_extra

PANELS_PER_ROW = 3


@dataclass(frozen=True)
class Point:
    """One result in one panel.

    Attributes:
        name: of the experiment or the published model.
        interval: 95 % confidence interval; None for a published result.
    """

    name: str
    benchmark: str
    num_visual_tokens: int
    score: float
    interval: tuple[float, float] | None


def draw(points: Sequence[Point]) -> bytes:
    """One panel per benchmark; filled marks with error bars are measured, hollow grey ones published.

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
    colors = {name: f"C{index % 10}" for index, name in enumerate(names)}
    for axes, benchmark in zip(panels, benchmarks):
        _draw_panel(axes, benchmark, [point for point in points if point.benchmark == benchmark], colors)
    for axes in panels[len(benchmarks) :]:
        axes.set_axis_off()
    handles = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_panel(axes: Any, benchmark: str, points: Sequence[Point], colors: dict[str, str]) -> None:
    for point in points:
        place = (point.num_visual_tokens, point.score)
        if point.interval is None:
            axes.plot(*place, "o", markerfacecolor="none", color="grey", markersize=5, label="published")
        else:
            error = [[max(0.0, point.score - point.interval[0])], [max(0.0, point.interval[1] - point.score)]]
            axes.errorbar(*place, yerr=error, fmt="s", color=colors[point.name], capsize=3, label=point.name)
    axes.set_title(benchmark)
    axes.set_xscale("symlog", linthresh=16)  # 0 tokens is a place, too
    ticks = sorted({point.num_visual_tokens for point in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.15)
    axes.grid(alpha=0.3)
    axes.set_xlabel("visual tokens", fontsize=8)
