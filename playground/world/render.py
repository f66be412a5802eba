"""Draw a scene: 96x96 RGB, plain light background, shapes with jitter in place and colour, words in a 3x5 font."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .scene import Scene

IMAGE_SIZE = 96
BLANK_GRAY = (127, 127, 127)
RGB = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 200, 30),
    "purple": (150, 50, 180),
}
CENTERS = {"left": (17, 48), "above": (48, 17), "middle": (48, 48), "below": (48, 79), "right": (79, 48)}
RADII = {"small": 9.0, "big": 13.0}
JITTER = 3
OVERSAMPLE = 3  # shapes are drawn this much larger and averaged down, for smooth edges

FONT = {  # rows of three pixels, top to bottom
    "a": "010 101 111 101 101",
    "b": "110 101 110 101 110",
    "c": "011 100 100 100 011",
    "d": "110 101 101 101 110",
    "e": "111 100 110 100 111",
    "g": "011 100 101 101 011",
    "h": "101 101 111 101 101",
    "k": "101 101 110 101 101",
    "n": "111 101 101 101 101",
    "o": "010 101 101 101 010",
    "p": "110 101 110 100 100",
    "r": "110 101 110 101 101",
    "s": "011 100 010 001 110",
    "t": "111 010 010 010 010",
    "u": "101 101 101 101 111",
    "y": "101 101 010 010 010",
}
PIXEL = 2  # size of one font pixel
WORD_CORNERS = ((4, 4), (66, 4), (4, 80), (66, 80))  # top left of the word, one per corner of the image


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Corner points of a polygon shape around (x, y)."""
    if shape == "square":
        r = 0.88 * r
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)]
    if shape == "star":
        points = []
        for i in range(10):
            radius = 1.1 * r if i % 2 == 0 else 0.45 * r
            angle = math.pi * (i / 5 - 0.5)
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        return points
    raise ValueError(f"unknown shape {shape!r}")


def _shade(rgb: tuple[int, int, int], rng: random.Random, spread: int) -> tuple[int, int, int]:
    return tuple(min(255, max(0, c + rng.randint(-spread, spread))) for c in rgb)  # type: ignore[return-value]


@dataclass(frozen=True)
class Layout:
    """The positions of things on the canvas, as boxes (left, top, right, bottom) in pixels."""

    items: tuple[tuple[float, float, float, float], ...]
    word: tuple[float, float, float, float] | None


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw `scene`; `rng` decides what the ground truth leaves open (background, jitter, exact shade)."""
    return draw_with_layout(scene, rng)[0]


def draw_with_layout(scene: Scene, rng: random.Random) -> tuple[Image.Image, Layout]:
    """`draw_scene`, and where everything is: the targets of vision pre-training."""
    base = rng.randint(222, 250)
    side = IMAGE_SIZE * OVERSAMPLE
    image = Image.new("RGB", (side, side), _shade((base, base, base), rng, 5))
    draw = ImageDraw.Draw(image)
    boxes = []
    for item in scene.items:
        x, y = (c + rng.randint(-JITTER, JITTER) for c in CENTERS[item.place])
        r = RADII[item.size]
        boxes.append((x - r, y - r, x + r, y + r))
        fill = _shade(RGB[item.color], rng, 14)
        if item.shape == "circle":
            draw.ellipse([c * OVERSAMPLE for c in boxes[-1]], fill=fill)
        else:
            draw.polygon(_outline(item.shape, x * OVERSAMPLE, y * OVERSAMPLE, r * OVERSAMPLE), fill=fill)
    image = image.reduce(OVERSAMPLE)
    word_box = None
    if scene.word is not None:
        left, top = (c + rng.randint(-2, 2) for c in WORD_CORNERS[scene.corner])
        _write_word(image, scene.word, left, top)
        word_box = (left, top, left + 11 * PIXEL, top + 5 * PIXEL)
    return image, Layout(tuple(boxes), word_box)


def _write_word(image: Image.Image, word: str, left: int, top: int) -> None:
    draw = ImageDraw.Draw(image)
    for i, letter in enumerate(word):
        for row, bits in enumerate(FONT[letter].split()):
            for column, bit in enumerate(bits):
                if bit == "1":
                    x, y = left + (4 * i + column) * PIXEL, top + row * PIXEL
                    draw.rectangle((x, y, x + PIXEL - 1, y + PIXEL - 1), fill=(20, 20, 20))


def blank_image() -> Image.Image:
    """The gray image shown to measure what a model answers without seeing anything."""
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BLANK_GRAY)
