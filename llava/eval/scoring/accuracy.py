"""Accuracies: percentages by group as the scorers print them, and accuracy against several human answers."""

from collections.abc import Iterable, Mapping
from typing import Any


def percent(values: Iterable[float]) -> float:
    """Return 100 times the mean of the values, which must not be empty."""
    values = list(values)
    return 100 * sum(values) / len(values)


def by_group(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return group -> percent, in alphabetical order, of `(group, value)` pairs."""
    groups: dict[str, list[float]] = {}
    for group, value in pairs:
        groups.setdefault(group, []).append(value)
    return {group: percent(groups[group]) for group in sorted(groups)}


def table(title: str, accuracies: Mapping[str, Any]) -> list[str]:
    """Return `title` and one indented line per group; nothing if there are no groups."""
    if not accuracies:
        return []
    return [f"{title}:", *(f"  {group}: {accuracy:.2f}%" for group, accuracy in accuracies.items())]


def human_accuracy(matches: int, answers: int = 10) -> float:
    """Return the accuracy of an answer that `matches` of `answers` people gave (https://visualqa.org/evaluation.html).

    It is the mean, over all ways to leave one person out, of min(1, matches among the others / 3): for ten people 0,
    0.3, 0.6, 0.9, 1, 1, ...
    """
    left_out_agrees = matches * min(1.0, (matches - 1) / 3)
    left_out_differs = (answers - matches) * min(1.0, matches / 3)
    return (left_out_agrees + left_out_differs) / answers
