"""A scene of the playground: up to three coloured shapes at named places, and perhaps a written word.

Scenes are drawn from a `random.Random`, so a seed fixes everything. The split is a property of the scene's *content*:
one scene in ten (by hash) is held out, and neither the base models nor the training data ever see one of those.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

COLORS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "star")
PLACES = ("left", "above", "middle", "below", "right")
WORDS = ("cat", "dog", "sun", "car", "hat", "cup", "bus", "key")
SIZES = ("small", "big")
CORNERS = (0, 1, 2, 3)

MAX_ITEMS = 3
HELD_OUT_SHARE = 10  # one scene in ten


@dataclass(frozen=True)
class Item:
    """One coloured shape. `size` is drawn but never mentioned in text; it makes images differ."""

    color: str
    shape: str
    place: str
    size: str = "big"


@dataclass(frozen=True)
class Scene:
    """Ground truth of one image. `items` are in the order of `PLACES`; a place holds at most one item."""

    items: tuple[Item, ...]
    word: str | None = None
    corner: int = 0

    def content(self) -> str:
        """What can be said about the scene, as one line: equal lines mean equal answers to every question."""
        parts = [f"{item.color} {item.shape} {item.place}" for item in self.items]
        return "; ".join([*parts, f"word {self.word}"])

    def held_out(self) -> bool:
        """True if the scene belongs to the evaluation split."""
        digest = hashlib.sha256(self.content().encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def sample_scene(rng: random.Random, num_items: int | None = None) -> Scene:
    """Draw any scene, of either split. Colours and shapes repeat often, so that counting and hard negatives exist."""
    if num_items is None:
        num_items = rng.choices(range(1, MAX_ITEMS + 1), weights=(2, 3, 4))[0]
    places = rng.sample(PLACES, num_items)
    items: list[Item] = []
    for place in sorted(places, key=PLACES.index):
        color = rng.choice(items).color if items and rng.random() < 0.3 else rng.choice(COLORS)
        shape = rng.choice(items).shape if items and rng.random() < 0.3 else rng.choice(SHAPES)
        items.append(Item(color, shape, place, rng.choice(SIZES)))
    word = rng.choice(WORDS) if rng.random() < 0.5 else None
    return Scene(tuple(items), word, rng.choice(CORNERS))


def sample_split_scene(rng: random.Random, held_out: bool, num_items: int | None = None) -> Scene:
    """Draw a scene of one split only."""
    while True:
        scene = sample_scene(rng, num_items)
        if scene.held_out() == held_out:
            return scene
