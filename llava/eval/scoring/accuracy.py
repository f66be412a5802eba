"""Accuracy by group: what the scorers for outside benchmarks print."""

from collections.abc import Iterable, Mapping
from typing import Any


def percent(values: Iterable[float]) -> float:
    """100 times the mean; the values must not be empty."""
    values = list(values)
    return 100 * sum(values) / len(values)


def by_group(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """`(group, value)` pairs as group -> percent, in alphabetical order."""
    groups: dict[str, list[float]] = {}
    for group, value in pairs:
        groups.setdefault(group, []).append(value)
    return {group: percent(groups[group]) for group in sorted(groups)}


def table(title: str, accuracies: Mapping[str, Any]) -> list[str]:
    """`title` and one indented line per group; nothing where there are no groups."""
    if not accuracies:
        return []
    return [f"{title}:", *(f"  {group}: {accuracy:.2f}%" for group, accuracy in accuracies.items())]
