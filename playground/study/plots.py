"""The plots of the comparisons, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from llava.extras import require_extra


def _new_figure(width: float, height: float, panels: int) -> tuple[Any, Any]:
    """
    Raises:
        ImportError: matplotlib is missing.
    """
    require_extra("matplotlib", "eval")
    from matplotlib.figure import Figure  # no pyplot: no window system, no global figures

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels)


def _as_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw_comparison(points: Sequence[dict[str, Any]], baseline: str) -> bytes:
    """Accuracy against visual tokens (left) and against step time relative to `baseline` (right).

    Args:
        points: `name`, `tokens`, `time` (or None), `accuracy`, `deviation` of each connector.
    """
    figure, (left, right) = _new_figure(13, 5.5, 2)
    looks = {point["name"]: (f"C{index % 10}", "os^"[index // 10 % 3]) for index, point in enumerate(points)}
    _panel(left, points, "tokens", looks)
    left.set_xlabel("visual tokens (equal numbers are drawn side by side)")
    left.set_ylabel("held-out questions right, %")
    _panel(right, [point for point in points if point["time"] is not None], "time", looks)
    right.set_xlabel(f"time of a stage-2 step, relative to {baseline}")
    return _as_png(figure)


def _panel(axes: Any, points: Sequence[dict[str, Any]], key: str, looks: dict[str, tuple[str, str]]) -> None:
    """Points with error bars. The labels stand in a column on the right, in the order of accuracy, with leader lines:
    most connectors have the same number of tokens, and labels at the points would cover each other."""
    axes.grid(alpha=0.3)
    axes.margins(x=0.12, y=0.08)
    ranked = sorted(points, key=lambda point: point["accuracy"])
    for rank, point in enumerate(ranked):
        color, marker = looks[point["name"]]
        place = (_beside_its_equals(point, points, key), point["accuracy"])
        axes.errorbar(*place, yerr=point["deviation"], fmt=marker, color=color, capsize=3, markersize=5, alpha=0.85)
        axes.annotate(
            point["name"],
            xy=place,
            xytext=(1.05, (rank + 0.5) / len(ranked)),
            textcoords="axes fraction",
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.35, "linewidth": 0.8},
        )


def _beside_its_equals(point: dict[str, Any], points: Sequence[dict[str, Any]], key: str, step: float = 0.6) -> float:
    """The value of `key`, moved sideways where other points have the same, lest error bars cover each other."""
    names = [other["name"] for other in points if other[key] == point[key]]
    return point[key] + step * (names.index(point["name"]) - (len(names) - 1) / 2)


def draw_elastic(
    curve: Sequence[tuple[int, float, float]], trained_at: set[int], reference_lines: dict[str, float]
) -> bytes:
    """Accuracy of one checkpoint against the budget it is opened with.

    Args:
        curve: (visual tokens, mean accuracy, deviation), ascending.
        trained_at: budgets of the training, which get a ring.
        reference_lines: label -> accuracy, drawn as horizontal lines.
    """
    figure, axes = _new_figure(7, 5, 1)
    tokens, accuracy, deviation = zip(*curve, strict=True)
    axes.errorbar(tokens, accuracy, yerr=deviation, fmt="o-", color="C1", capsize=3, label="acformer, one checkpoint")
    for budget, value, _ in curve:
        if budget in trained_at:
            axes.plot(budget, value, "o", markersize=14, fillstyle="none", color="C1", label="trained at this budget",
                      linestyle="none")  # fmt: skip
    for index, (label, value) in enumerate(reference_lines.items()):
        axes.axhline(value, color=("C0", "0.5")[index % 2], linestyle="--", linewidth=1, label=label)
    _label_budgets(axes, tokens)
    return _as_png(figure)


def draw_curves(curves: dict[str, Sequence[tuple[int, float, float]]]) -> bytes:
    """Accuracy against the budget at load, several curves in one plot.

    Args:
        curves: label -> (visual tokens, mean accuracy, deviation), ascending.
    """
    figure, axes = _new_figure(7, 5, 1)
    for index, (label, curve) in enumerate(curves.items()):
        tokens, accuracy, deviation = zip(*curve, strict=True)
        line = f"{'os^D'[index % 4]}{('-', '--', ':', '-.')[index % 4]}"
        axes.errorbar(tokens, accuracy, yerr=deviation, fmt=line, color=f"C{index}", capsize=3, label=label)
    _label_budgets(axes, sorted({point[0] for curve in curves.values() for point in curve}))
    return _as_png(figure)


def _label_budgets(axes: Any, tokens: Sequence[int]) -> None:
    """A logarithmic axis of visual tokens with a mark at each budget, the accuracy's axis, grid and legend."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens at load")
    axes.set_ylabel("held-out questions right, %")
    axes.grid(alpha=0.3)
    axes.legend()
