"""Metrics of score files, and their bootstrap against plain resampling."""

import json
import random

import numpy as np
import pytest

from llava.eval.scoring.metrics import _resampled, _tables, bootstrap, compute, interval
from llava.eval.scoring.score_file import item
from llava.program import RequestError


@pytest.mark.parametrize(
    ("metric", "items", "score"),
    [
        ("mean", [item(1, 1), item(2, 0), item(3, 0.5), item(4, True)], 62.5),
        ("pope_f1", [item(n, [1, 1]) for n in range(3)] + [item(3, [1, 0]), item(4, [0, 1])], 75),
        # a: 1 of 2 yes found, no false yes: F1 = 2/3; b: no yes in replies or labels.
        ("pope_f1", [item(1, [1, 1], "a"), item(2, [0, 1], "a"), item(3, [0, 0], "b")], 100 / 3),
        # t: 3 of 4 questions, 1 of 2 images; u: all.
        (
            "mme",
            [item("p", 1, "t"), item("p", 1, "t"), item("q", 0, "t"), item("q", 1, "t"), item("p", 1, "u")],
            75 + 50 + 200,
        ),
        ("relative", [item(1, [8, 4]), item(2, [2, 6])], 100),
        ("relative", [item(1, [0, 4])], 0),
    ],
)
def test_metrics(metric: str, items: list[dict], score: float) -> None:
    assert compute(metric, items) == pytest.approx(score)
    assert compute(metric, json.loads(json.dumps(items))) == pytest.approx(score)
    assert bootstrap(metric, items, samples=7).shape == (7,)


def test_no_items_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(RequestError, match="nothing was answered"):
        compute("mean", [])
    with pytest.raises(RequestError, match="known: mean, "):
        compute("median", [item(1, 1)])


def _draw(items: list[dict], rng: random.Random) -> list[dict]:
    """Return one bootstrap sample, drawn naively: whole units with replacement, group by group."""
    drawn = []
    for group in {entry["group"] for entry in items}:
        units = sorted({entry["unit"] for entry in items if entry["group"] == group})
        for number, unit in enumerate(rng.choices(units, k=len(units))):
            members = [entry for entry in items if entry["group"] == group and entry["unit"] == unit]
            drawn += [entry | {"unit": f"{unit} {number}"} for entry in members]
    return drawn


@pytest.mark.parametrize("metric", ["mean", "pope_f1", "mme"])
def test_bootstrap_is_what_plain_resampling_gives(metric: str) -> None:
    rng = random.Random(0)
    values = {"mean": lambda: rng.random(), "pope_f1": lambda: [rng.random() < 0.5, rng.random() < 0.5]}
    value = values.get(metric, lambda: int(rng.random() < 0.7))
    items = [item(unit, value(), group) for group in "ab" for unit in range(15) for _ in range(2)]
    plain = [compute(metric, _draw(items, rng)) for _ in range(1500)]
    fast = bootstrap(metric, items, samples=1500)
    assert np.mean(fast) == pytest.approx(np.mean(plain), abs=0.2 * np.std(plain))
    assert np.std(fast) == pytest.approx(np.std(plain), rel=0.12)
    low, high = interval(metric, items)
    assert [low, high] == pytest.approx(np.percentile(bootstrap(metric, items), [2.5, 97.5]))
    assert low < compute(metric, items) < high
    assert interval(metric, items) == (low, high)


def test_many_units_are_drawn_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(unit, unit / 50) for unit in range(50)]
    monkeypatch.setattr("llava.eval.scoring.metrics._MAX_DRAWS", 120)
    scores = bootstrap("mean", items, samples=33)
    assert scores.shape == (33,) and 30 < scores.mean() < 70 and scores.std() > 0


def test_units_of_one_kind_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise VQAv2's 100 000 questions would be slow; the spread is that of the binomial distribution."""
    monkeypatch.setattr("llava.eval.scoring.metrics._MAX_DRAWS", 2 * 4000)  # one portion, if there are two kinds
    items = [item(unit, int(unit % 4 == 0)) for unit in range(10_000)]
    scores = bootstrap("mean", items, samples=4000)
    assert scores.mean() == pytest.approx(25, abs=0.05)
    assert scores.std() == pytest.approx(100 * (0.25 * 0.75 / 10_000) ** 0.5, rel=0.06)
    (table,) = _tables("mean", items).values()
    monkeypatch.setattr("llava.eval.scoring.metrics._MAX_DRAWS", 2)
    assert _resampled(table, 3, _OnlyKinds(kinds=2)).shape == (3, 2)


class _OnlyKinds:
    """A random generator that asserts the number of kinds."""

    def __init__(self, kinds: int) -> None:
        self.kinds = kinds

    def multinomial(self, n: int, shares: np.ndarray, size: int) -> np.ndarray:
        assert len(shares) == self.kinds and size == 1
        return np.random.default_rng(0).multinomial(n, shares, size=size)
