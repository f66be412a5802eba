"""The phrasing of benchmarks that ask for a single word, or for a letter among choices."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..world.language import Question
from ..world.scene import COLORS, PLACES, SHAPES, WORDS

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
OCR_HINT = "\nReference OCR token: "
LETTERS = "ABCD"

_ANSWERS: dict[str, Sequence[str]] = {
    "color": COLORS,
    "shape": SHAPES,
    "count": ("0", "1", "2", "3"),
    "position": PLACES,
    "yesno": ("yes", "no"),
    "word": WORDS,
}


def choices(question: Question, rng: random.Random, most: int = len(LETTERS)) -> list[str]:
    """The right answer among others of its kind, in random order; at most `most` of them."""
    wrong = [answer for answer in _ANSWERS[question.category] if answer != question.answer]
    return rng.sample([question.answer, *rng.sample(wrong, min(most - 1, len(wrong)))], min(most, len(wrong) + 1))
