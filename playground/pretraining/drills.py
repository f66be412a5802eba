"""Drills: dense exercises in looking things up, which teach in minutes what conversations alone teach slowly.

A conversation asks for a chain of skills at once (find what was asked, look it up, carry the answer to the end of the
prompt), and a small model sits on a plateau for thousands of steps before it has the whole chain. A drill asks for one
link at a time, many times per sequence: a list of facts, then
one or two words of a fact to be completed, or a short claim followed by yes or no.
"""

from __future__ import annotations

import random

from ..world.scene import COLORS, PLACES, SHAPES, Item

ORDERS = (("color", "shape", "place"), ("shape", "place", "color"), ("place", "color", "shape"))
CLAIMS = (("color",), ("shape",), ("place",), ("color", "shape"), ("color", "shape"), ("shape", "place"))
SEPARATORS = (" ", ", ", " . ", " and ")


def sample_items(rng: random.Random, count: int) -> list[Item]:
    """`count` items at different places, in any order."""
    return [Item(rng.choice(COLORS), rng.choice(SHAPES), place) for place in rng.sample(PLACES, count)]


def facts(items: list[Item], rng: random.Random) -> str:
    """The list of facts, in the terse form of descriptions."""
    return rng.choice(SEPARATORS).join(f"{i.color} {i.shape} {i.place}" for i in items)


def look_ups(items: list[Item], rng: random.Random, count: int) -> list[tuple[str, str]]:
    """One or two attributes of an item, and the attribute that follows in `ORDERS`, where it is certain."""
    result = []
    for _ in range(count):
        item, names = rng.choice(items), rng.choice(ORDERS)
        given = names[: rng.randint(1, 2)]
        wanted = names[len(given)]
        fitting = {getattr(i, wanted) for i in items if all(getattr(i, n) == getattr(item, n) for n in given)}
        if len(fitting) == 1:
            result.append((" ".join(getattr(item, n) for n in given), getattr(item, wanted)))
    return result


def claims(items: list[Item], rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Claims of one or two words with their verdicts, half of them right, wrong ones made of words that are there."""
    result = []
    for _ in range(count):
        item, other = rng.choice(items), rng.choice(items)
        names = rng.choice(CLAIMS)
        true = {tuple(getattr(i, n) for n in names) for i in items}
        if rng.random() < 0.5:
            claim = tuple(getattr(item, n) for n in names)
        else:
            values = {"color": COLORS, "shape": SHAPES, "place": PLACES}
            claim = (getattr(item, names[0]), getattr(other, names[1])) if len(names) == 2 else ()
            if not claim or claim in true:
                false = [(v,) for v in values[names[0]]] if len(names) == 1 else []
                false += [(getattr(item, names[0]), v) for v in values[names[-1]] if len(names) == 2]
                false = [c for c in false if c not in true]
                if not false:
                    continue
                claim = rng.choice(false)
        result.append((" ".join(claim) + "?", "yes" if claim in true else "no"))
    return result
