"""Metrics of score files, and bootstrap confidence intervals.

A metric reduces the items of one unit (a question, an image, a circular group) to a few sums, and computes the score
from their totals per group. The same code gives the score and the scores of a thousand bootstrap samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.program import RequestError

Items = Sequence[Mapping[str, Any]]
Totals = Mapping[str, np.ndarray]  # group -> [..., sums]

# Largest number of draws [samples, kinds of units] of one group in memory at once.
_MAX_DRAWS = 20_000_000


@dataclass(frozen=True)
class Metric:
    """How items become a score.

    Attributes:
        tally: returns sums `[k]` for the items of one unit.
        score: returns scores `[...]` for group -> totals `[..., k]`.
    """

    tally: Callable[[Items], Sequence[float]]
    score: Callable[[Totals], np.ndarray]


def _sum_and_count(items: Items) -> Sequence[float]:
    return sum(float(item["value"]) for item in items), len(items)


def _percent(totals: Totals) -> np.ndarray:
    """100 * the mean over all items."""
    everything = sum(totals.values())
    return 100 * (everything[..., 0] / everything[..., 1])


def _agreement(items: Items) -> Sequence[float]:
    """Value = `[predicted yes, labelled yes]`: count both together, and the sum of each."""
    values = [[bool(flag) for flag in item["value"]] for item in items]
    return sum(said and right for said, right in values), sum(said + right for said, right in values)


def _mean_f1(totals: Totals) -> np.ndarray:
    """Mean over the groups of 100 * F1; 0 for a group in which yes never occurs."""
    return np.mean([200 * total[..., 0] / np.maximum(total[..., 1], 1) for total in totals.values()], axis=0)


def _answers_and_wholes(items: Items) -> Sequence[float]:
    """Count right answers, answers, units with every answer right, and units."""
    return *_sum_and_count(items), all(item["value"] for item in items), 1


def _accuracy_and_plus(totals: Totals) -> np.ndarray:
    """Sum over the groups (tasks) of 100 * (accuracy + share of units with every answer right)."""
    return 100 * sum(total[..., 0] / total[..., 1] + total[..., 2] / total[..., 3] for total in totals.values())


def _both_scores(items: Items) -> Sequence[float]:
    """Value = `[reference's score, our score]`."""
    return tuple(sum(float(item["value"][place]) for item in items) for place in (0, 1))


def _relative(totals: Totals) -> np.ndarray:
    """100 * our scores / the reference's; 0 if the reference has none."""
    everything = sum(totals.values())
    reference = everything[..., 0]
    return 100 * np.where(reference == 0, 0, everything[..., 1] / np.where(reference == 0, 1, reference))


METRICS: Mapping[str, Metric] = {
    "mean": Metric(_sum_and_count, _percent),
    "pope_f1": Metric(_agreement, _mean_f1),
    "mme": Metric(_answers_and_wholes, _accuracy_and_plus),
    "relative": Metric(_both_scores, _relative),
}


def compute(metric: str, items: Items) -> float:
    """Return the score of the items.

    Raises:
        RequestError: unknown metric, no items, or items of another metric.
    """
    totals = {group: table.sum(axis=0) for group, table in _tables(metric, items).items()}
    return float(METRICS[metric].score(totals))


def bootstrap(metric: str, items: Items, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """Return scores `[samples]` of resampled items: whole units with replacement, as many per group as there are.

    Raises:
        RequestError: unknown metric, no items, items of another metric, or no samples.
    """
    if samples < 1:
        raise RequestError(f"--samples is {samples}; it must be 1 or more")
    rng = np.random.default_rng(seed)
    totals = {group: _resampled(table, samples, rng) for group, table in _tables(metric, items).items()}
    return METRICS[metric].score(totals)


def interval(metric: str, items: Items, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of the score, by percentile bootstrap."""
    low, high = np.percentile(bootstrap(metric, items, samples, seed), [2.5, 97.5])
    return float(low), float(high)


def _tables(metric: str, items: Items) -> dict[str, np.ndarray]:
    """Return group -> sums `[units, k]`."""
    if metric not in METRICS:
        raise RequestError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if not items:
        raise RequestError(f"no items to compute {metric!r} from: nothing was answered")
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for item in items:
        groups.setdefault(item["group"], {}).setdefault(item["unit"], []).append(item)
    tally = METRICS[metric].tally
    try:
        tables = {
            group: np.array([tally(unit) for unit in units.values()], dtype=np.float64)
            for group, units in groups.items()
        }
    except (TypeError, ValueError, IndexError) as error:
        raise RequestError(f"the items' values are not those of the metric {metric!r} ({error})") from error
    if not all(np.isfinite(table).all() for table in tables.values()):
        raise RequestError(f"the items' values are not those of the metric {metric!r} (one is no finite number)")
    return tables


def _resampled(table: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the totals `[samples, k]` of bootstrap samples from the units of a group `[units, k]`.

    Units with equal sums are drawn together, as one kind: 100 000 questions have only a few kinds.
    """
    units = len(table)
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    step = max(1, _MAX_DRAWS // len(kinds))
    totals = [
        rng.multinomial(units, counts / units, size=min(step, samples - start)) @ kinds
        for start in range(0, samples, step)
    ]
    return np.concatenate(totals)
