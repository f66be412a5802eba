"""Write the playground's images and LLaVA-format files: `python -m playground.make_data [--out DIR] [--num-train N]`.

`pretrain.json` (stage 1, `--version plain`), `instruct.json` (stage 2, `--version v1`), `images/`,
`eval_questions.jsonl` on held-out scenes and `eval_questions_blank.jsonl` (the same on one gray image). The same
arguments give the same bytes; a second run finds its own stamp and does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from .files import write_bytes, write_json, write_json_lines
from .tasks.answer_formats import OCR_HINT, SHORT_ANSWER
from .world.language import CATEGORIES, DESCRIBE, FACTS, READING, Question, ask, ask_many, caption, describe
from .world.render import blank_image, draw_scene
from .world.scene import sample_split_scene

FORMAT = 2  # raise when the data of the same arguments change
STAMP = "stamp.json"
# More counting than in pre-training: it is what images teach slowest.
INSTRUCT_WEIGHTS = {"color": 2, "shape": 2, "count": 6, "position": 2, "yesno": 4, "word": 1}
SHORT_SHARE, SHORT_TURNS = 0.5, 3  # of the conversations about an image; of the turns of one
OCR_SHARE = 0.2  # of these turns
INSTRUCTIONS = (DESCRIBE, "What is in the picture?", "Describe what you see.")


def stamp_of(num_train: int, num_eval: int, turns: int, seed: int) -> dict[str, int]:
    """The arguments that determine the data, as written to `stamp.json`."""
    return {"format": FORMAT, "num_train": num_train, "num_eval": num_eval, "turns": turns, "seed": seed}


def make_data(out: Path, num_train: int, num_eval: int, turns: int, seed: int) -> bool:
    """Write the data set into `out`; returns False if it was there already.

    Args:
        num_train: images for training; both stages use all of them.
        num_eval: questions per category of the held-out set.
        turns: questions per image in `instruct.json`.
    """
    if num_train < 1 or num_eval < 1 or turns < 1:
        raise ValueError("num_train, num_eval and turns must be at least 1")
    stamp = stamp_of(num_train, num_eval, turns, seed)
    if _read_stamp(out) == stamp:
        return False
    (out / STAMP).unlink(missing_ok=True)  # from here on the folder is unfinished
    (out / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    _write_training(out, rng, num_train, turns, seed)
    _write_evaluation(out, rng, num_eval)
    write_json(out / STAMP, stamp)
    return True


def _read_stamp(out: Path) -> dict[str, Any] | None:
    try:
        return json.loads((out / STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _save(image: Image.Image, path: Path) -> str:
    """Write a PNG and return the digest of its pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(image.tobytes()).hexdigest()


def _talk(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    """(question, answer) pairs as LLaVA's list of turns."""
    turns = []
    for question, answer in pairs:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return turns


def _write_training(out: Path, rng: random.Random, num_train: int, turns: int, seed: int) -> None:
    pretrain, instruct = [], []
    formats = random.Random(f"formats {seed}")  # apart, so that everything else stays as it is
    for i in range(num_train):
        scene = sample_split_scene(rng, held_out=False)
        name = f"images/train_{i:05d}.png"
        _save(draw_scene(scene, rng), out / name)
        request = f"<image>\n{rng.choice(INSTRUCTIONS)}"
        pretrain.append({"id": f"train_{i:05d}", "image": name, "conversations": _talk([(request, caption(scene))])})
        pairs = _in_format(ask_many(scene, rng, turns, INSTRUCT_WEIGHTS), scene.word, formats)
        if rng.random() < 0.15:
            pairs.append((DESCRIBE, caption(scene)))
        pairs[0] = (f"<image>\n{pairs[0][0]}", pairs[0][1])
        instruct.append({"id": f"train_{i:05d}", "image": name, "conversations": _talk(pairs)})
    for i in range(num_train // 9):  # one sample in ten has no image
        instruct.append({"id": f"text_{i:05d}", "conversations": _talk(_text_only(rng, turns))})
    rng.shuffle(instruct)
    write_json(out / "pretrain.json", pretrain)
    write_json(out / "instruct.json", instruct)


def _in_format(questions: list[Question], word: str | None, rng: random.Random) -> list[tuple[str, str]]:
    """Some questions say, as benchmarks do, that a single word is wanted, and some of these what word is to be read."""
    pairs = [(q.text, q.answer) for q in questions]
    if rng.random() < SHORT_SHARE:
        for place in rng.sample(range(len(pairs)), min(SHORT_TURNS, len(pairs))):
            read = f"{OCR_HINT}{word or ''}" if rng.random() < OCR_SHARE else ""
            pairs[place] = (questions[place].text + read + SHORT_ANSWER, questions[place].answer)
    return pairs


def _text_only(rng: random.Random, turns: int) -> list[tuple[str, str]]:
    """A conversation without an image: about a described scene, or facts."""
    if rng.random() < 0.3:
        return list(rng.sample(FACTS, min(turns, len(FACTS))))
    scene = sample_split_scene(rng, held_out=False)
    pairs = [(q.text, q.answer) for q in ask_many(scene, rng, turns)]
    question, answer = pairs[0]
    pairs[0] = (f"{READING} {describe(scene, rng).rstrip('.')}. {question}", answer)
    return pairs


def _write_evaluation(out: Path, rng: random.Random, num_eval: int) -> None:
    """Images of held-out scenes, one question of every category each, until every category is full.

    Yes and no are taken in turn, so that always answering one of them scores one half.
    """
    counts = dict.fromkeys(CATEGORIES, 0)
    rows: list[dict[str, Any]] = []
    number = 0
    while min(counts.values()) < num_eval:
        scene = sample_split_scene(rng, held_out=True)
        questions = [_eval_question(scene, rng, name, counts[name]) for name in CATEGORIES if counts[name] < num_eval]
        asked = [q for q in questions if q is not None]
        if not asked:
            continue
        name = f"images/eval_{number:05d}.png"
        _save(draw_scene(scene, rng), out / name)
        number += 1
        for q in asked:
            counts[q.category] += 1
            row = {"question_id": len(rows), "image": name, "text": q.text, "category": q.category, "answer": q.answer}
            rows.append(row)
    write_json_lines(out / "eval_questions.jsonl", rows)
    blank = "images/blank.png"
    _save(blank_image(), out / blank)
    write_json_lines(out / "eval_questions_blank.jsonl", [row | {"image": blank} for row in rows])


def _eval_question(scene: Any, rng: random.Random, category: str, count: int) -> Question | None:
    """A question of the category; of yes/no, the answer whose turn it is."""
    question = ask(scene, rng, category)
    if category == "yesno" and question is not None and question.answer != ("yes", "no")[count % 2]:
        return None
    return question


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m playground.make_data", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("playground/data/shapes"))
    parser.add_argument("--num-train", type=int, default=4000, help="training images")
    parser.add_argument("--num-eval", type=int, default=100, help="held-out questions per category")
    parser.add_argument("--turns", type=int, default=8, help="questions per training image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    fresh = make_data(args.out, args.num_train, args.num_eval, args.turns, args.seed)
    sys.stdout.write(f"{'wrote' if fresh else 'up to date:'} {args.out}\n")


if __name__ == "__main__":
    main()
