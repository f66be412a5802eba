"""Text about a scene: captions, other descriptions, and questions with single-word answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .scene import COLORS, PLACES, SHAPES, WORDS, Item, Scene

CATEGORIES = ("color", "shape", "count", "position", "yesno", "word")
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PLACE_PHRASE = {
    "left": "on the left",
    "right": "on the right",
    "above": "above",
    "below": "below",
    "middle": "in the middle",
}
DESCRIBE = "Describe the picture."
READING = "There is"  # opens a description given as text
FACT_WORDS = ("color", "shape", "place")
# Facts without any image: (question, answer).
FACTS = (
    ("How many sides does a triangle have?", "3"),
    ("How many sides does a square have?", "4"),
    ("How many sides does a circle have?", "0"),
    ("How many points does a star have?", "5"),
    ("What is the opposite of left?", "right"),
    ("What is the opposite of right?", "left"),
    ("What is the opposite of above?", "below"),
    ("What is the opposite of below?", "above"),
    ("What is the opposite of yes?", "no"),
    ("What is the opposite of no?", "yes"),
    ("What comes after 0?", "1"),
    ("What comes after 1?", "2"),
    ("What comes after 2?", "3"),
    ("What comes after 3?", "4"),
    ("What comes after 4?", "5"),
    ("Is red a color?", "yes"),
    ("Is circle a shape?", "yes"),
    ("Is purple a shape?", "no"),
    ("Is star a color?", "no"),
    ("Is cat a word?", "yes"),
)


@dataclass(frozen=True)
class Question:
    """One question about a scene; `answer` is a single word, `category` one of `CATEGORIES`."""

    text: str
    answer: str
    category: str


def caption(scene: Scene) -> str:
    """The one canonical description: items in the order of `PLACES`, then the word.

    Example: `a red circle on the left, a blue square above, the word cat.`
    """
    facts: list[Item | str] = [*scene.items, *([scene.word] if scene.word else [])]
    return ", ".join(_phrase(fact) for fact in facts) + "."


def _phrase(fact: Item | str) -> str:
    if isinstance(fact, str):
        return f"the word {fact}"
    return f"a {fact.color} {fact.shape} {PLACE_PHRASE[fact.place]}"


def describe(scene: Scene, rng: random.Random, any_order: bool = False) -> str:
    """A description in one of many forms and orders, with repetitions: what the language model learns to read.

    Repetition and loose order are on purpose. Visual tokens come as a set in which several tokens may report the same
    thing, so a reader that expects one tidy sentence would make a poor partner for a connector. `any_order` also mixes
    the words within a fact: for the tokenizer's corpus only, as the language model learns far slower from it.
    """
    facts: list[Item | str] = list(scene.items)
    if scene.word is not None:
        facts.append(scene.word)
    form = rng.random()
    if form < 0.2:
        return caption(scene)
    rng.shuffle(facts)
    if form < 0.4:  # sentence form, any order
        return ", ".join(_phrase(f) for f in facts) + "."
    facts += rng.choices(facts, k=rng.randint(0, 3))  # terse form, with repetitions
    rng.shuffle(facts)
    order = rng.sample(FACT_WORDS, 3) if any_order else FACT_WORDS
    separator = rng.choice((" ", ", ", " . ", " and "))
    words = []
    for f in facts:
        words.append(f"word {f}" if isinstance(f, str) else " ".join(getattr(f, name) for name in order))
    return separator.join(words)


def color_question(scene: Scene, rng: random.Random) -> Question | None:
    item = rng.choice(scene.items)
    if rng.random() < 0.5:
        return Question(f"What color is the shape {PLACE_PHRASE[item.place]}?", item.color, "color")
    if sum(other.shape == item.shape for other in scene.items) > 1:
        return None
    return Question(f"What color is the {item.shape}?", item.color, "color")


def shape_question(scene: Scene, rng: random.Random) -> Question | None:
    item = rng.choice(scene.items)
    if rng.random() < 0.5:
        return Question(f"What shape is {PLACE_PHRASE[item.place]}?", item.shape, "shape")
    if sum(other.color == item.color for other in scene.items) > 1:
        return None
    return Question(f"What shape is {item.color}?", item.shape, "shape")


def count_question(scene: Scene, rng: random.Random) -> Question | None:
    kind = rng.random()
    if kind < 0.4:
        return Question("How many shapes are there?", str(len(scene.items)), "count")
    if kind < 0.7:
        color = rng.choice(COLORS) if rng.random() < 0.25 else rng.choice(scene.items).color
        count = sum(item.color == color for item in scene.items)
        return Question(f"How many {color} shapes are there?", str(count), "count")
    shape = rng.choice(SHAPES) if rng.random() < 0.25 else rng.choice(scene.items).shape
    count = sum(item.shape == shape for item in scene.items)
    return Question(f"How many {shape}s are there?", str(count), "count")


def position_question(scene: Scene, rng: random.Random) -> Question | None:
    item = rng.choice(scene.items)
    if rng.random() < 0.5:
        if sum((other.color, other.shape) == (item.color, item.shape) for other in scene.items) > 1:
            return None
        return Question(f"Where is the {item.color} {item.shape}?", item.place, "position")
    if sum(other.shape == item.shape for other in scene.items) > 1:
        return None
    return Question(f"Where is the {item.shape}?", item.place, "position")


def yesno_question(scene: Scene, rng: random.Random) -> Question | None:
    """The answer is tossed first, so every kind is balanced; the negatives mix things that are there."""
    yes = rng.random() < 0.5
    kind = rng.choice(("pair", "pair", "is", "color", "shape", "place", "word"))
    if kind == "word":
        # Half of all scenes have a word: asking as it comes is balanced.
        return Question("Is there a word?", "yes" if scene.word else "no", "yesno")
    item = rng.choice(scene.items)
    colors = {i.color for i in scene.items}
    shapes = {i.shape for i in scene.items}
    if kind == "pair":
        color, shape = (item.color, item.shape) if yes else absent_pair(scene, rng)
        text = f"Is there a {color} {shape}?"
    elif kind == "is":
        if sum(other.shape == item.shape for other in scene.items) > 1:
            return None
        wrong = sorted(colors - {item.color}) if rng.random() < 0.6 else []
        color = item.color if yes else rng.choice(wrong or [c for c in COLORS if c != item.color])
        text = f"Is the {item.shape} {color}?"
    elif kind == "color":
        color = item.color if yes else rng.choice([c for c in COLORS if c not in colors])
        text = f"Is there a {color} shape?"
    elif kind == "shape":
        shape = item.shape if yes else rng.choice([s for s in SHAPES if s not in shapes])
        text = f"Is there a {shape}?"
    else:
        taken = {i.place for i in scene.items}
        place = item.place if yes else rng.choice([p for p in PLACES if p not in taken])
        text = f"Is there a shape {PLACE_PHRASE[place]}?"
    return Question(text, "yes" if yes else "no", "yesno")


def absent_pair(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A (colour, shape) that is not there: a wrong combination of things present if there is one, else half right."""
    present = {(i.color, i.shape) for i in scene.items}
    colors = sorted({i.color for i in scene.items})
    shapes = sorted({i.shape for i in scene.items})
    swapped = [(c, s) for c in colors for s in shapes if (c, s) not in present]
    half = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present and (c in colors or s in shapes)]
    return rng.choice(swapped if swapped and rng.random() < 0.6 else half)


def word_question(scene: Scene, rng: random.Random) -> Question | None:
    if scene.word is None:
        return None
    return Question("What word is written?", scene.word, "word")


ASK = {
    "color": color_question,
    "shape": shape_question,
    "count": count_question,
    "position": position_question,
    "yesno": yesno_question,
    "word": word_question,
}
TURN_WEIGHTS = {"color": 2, "shape": 2, "count": 2, "position": 2, "yesno": 4, "word": 1}


def ask(
    scene: Scene, rng: random.Random, category: str | None = None, weights: dict[str, int] = TURN_WEIGHTS
) -> Question | None:
    """One question of `category` (default: any, by `weights`); None if this scene does not allow the one drawn."""
    if category is None:
        category = rng.choices(list(weights), weights=list(weights.values()))[0]
    return ASK[category](scene, rng)


def ask_many(scene: Scene, rng: random.Random, count: int, weights: dict[str, int] = TURN_WEIGHTS) -> list[Question]:
    """`count` different questions about one scene (fewer when the scene runs out of them)."""
    found: dict[str, Question] = {}
    for _ in range(6 * count):
        question = ask(scene, rng, weights=weights)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def vocabulary() -> list[str]:
    """Every word the playground may say in an answer or about a scene."""
    digits = [str(n) for n in range(6)]
    return [*COLORS, *SHAPES, *(f"{s}s" for s in SHAPES), *PLACES, *WORDS, *digits, "yes", "no", "shape", "word"]
