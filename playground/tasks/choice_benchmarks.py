"""Held-out scenes as the benchmarks that ask for a letter or a whole answer."""

from __future__ import annotations

import base64
import csv
import io
import random
from pathlib import Path
from typing import Any

from ..files import write_bytes, write_json, write_json_lines
from ..world.language import DESCRIBE, Question, caption
from ..world.render import draw_scene
from ..world.scene import Scene
from .answer_formats import LETTER_ANSWER, LETTERS, choices
from .word_benchmarks import SHORT_CATEGORIES, held_out, save_image

CATEGORIES = tuple(category for category in SHORT_CATEGORIES if category != "yesno")


def letter_question(rng: random.Random, number: int) -> tuple[Scene, Question, list[str], str]:
    """A held-out scene, a question about it (kinds in turn), its choices, and the letter of the right one."""
    scene, question = held_out(rng, CATEGORIES[number % len(CATEGORIES)])
    shown = choices(question, rng)
    return scene, question, shown, LETTERS[shown.index(question.answer)]


def write_scienceqa(folder: Path, rng: random.Random, count: int) -> None:
    """Problems of the test split; every fourth is about a described scene instead of an image."""
    problems: dict[str, Any] = {}
    records = []
    for number in range(count):
        scene, question, shown, letter = letter_question(rng, number)
        id_, pictured = str(number + 1), number % 4 != 3
        if pictured:
            save_image(scene, rng, folder / "images/test" / id_ / "image.png")
        hint = "" if pictured else f"There is {caption(scene)}"
        problems[id_] = {
            "question": question.text,
            "choices": shown,
            "answer": LETTERS.index(letter),
            "hint": hint,
            "image": "image.png" if pictured else None,
            "lecture": "",
            "solution": "",
            "task": "closed choice",
            "grade": "grade1",
            "subject": "natural science",
            "topic": question.category,
            "category": question.category,
            "skill": "see",
            "split": "test",
        }
        options = " ".join(f"({sign}) {choice}" for sign, choice in zip(LETTERS, shown))
        value = f"Context: {hint or 'N/A'}\nQuestion: {question.text}\nOptions: {options}" + "\n<image>" * pictured
        turns = [{"from": "human", "value": value}, {"from": "gpt", "value": f"The answer is {letter}."}]
        records.append({"id": id_} | ({"image": f"{id_}/image.png"} if pictured else {}) | {"conversations": turns})
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})
    write_json(folder / "llava_test_CQM-A.json", records)


def write_mmbench(path: Path, rng: random.Random, count: int) -> None:
    """A dev table: `count` questions, each in as many rows as it has choices, rotated, as the official table has it."""
    columns = ("index", "question", "hint", *LETTERS, "answer", "category", "image", "source", "l2-category")
    columns += ("comment", "split")
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, columns, delimiter="\t", lineterminator="\n")
    table.writeheader()
    for number in range(count):
        scene, question, shown, _ = letter_question(rng, number)
        image = io.BytesIO()
        draw_scene(scene, rng).save(image, "JPEG", quality=95)
        for turn in range(len(shown)):
            rotated = shown[turn:] + shown[:turn]
            row = {
                "index": number + turn * 1_000_000,
                "question": question.text,
                **dict(zip(LETTERS, rotated)),
                "answer": LETTERS[rotated.index(question.answer)],
                "category": f"{question.category}_recognition",
                "image": base64.b64encode(image.getvalue()).decode(),
                "source": "playground",
                "l2-category": "fine-grained_perception (single-instance)",
                "split": "dev",
            }
            table.writerow(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue().encode())


def write_seed(folder: Path, rng: random.Random, count: int) -> None:
    """Types by kind of question; the last fifth of the images counts as frames of videos."""
    types = {category.capitalize(): place + 1 for place, category in enumerate(CATEGORIES)}
    questions, rows = [], []
    for number in range(count):
        scene, question, shown, letter = letter_question(rng, number)
        is_video = number >= count - count // 5
        id_ = f"v{number}" if is_video else str(number)
        image = f"SEED-Bench-{'video-image' if is_video else 'image'}/{number}.png"
        save_image(scene, rng, folder / image)
        lines = [f"\n{sign}. {choice}" for sign, choice in zip(LETTERS, shown)]
        rows.append({"question_id": id_, "image": image, "text": question.text + "".join(lines) + LETTER_ANSWER})
        questions.append(
            {
                "question_id": id_,
                "question_type_id": types[question.category.capitalize()],
                "data_type": "video" if is_video else "image",
                "data_id": str(number),
                "question": question.text,
                "answer": letter,
                **{f"choice_{sign.lower()}": choice for sign, choice in zip(LETTERS, shown)},
            }
        )
    write_json(folder / "SEED-Bench.json", {"question_type": types, "questions": questions})
    write_json_lines(folder / "llava-seed-bench.jsonl", rows)


def write_mmvet(folder: Path, rng: random.Random, count: int) -> None:
    """Open questions with the capabilities that they need."""
    rows, annotations = [], {}
    for number in range(count):
        scene, question = held_out(rng, SHORT_CATEGORIES[number % len(SHORT_CATEGORIES)])
        image = f"v1_{number}.png"
        save_image(scene, rng, folder / "images" / image)
        rows.append({"question_id": number, "image": image, "text": question.text})
        kind = {"word": ["ocr"], "count": ["rec", "math"], "position": ["rec", "spat"]}.get(question.category, ["rec"])
        annotations[f"v1_{number}"] = {
            "imagename": image,
            "question": question.text,
            "answer": question.answer,
            "capability": kind,
        }
    write_json_lines(folder / "llava-mm-vet.jsonl", rows)
    write_json(folder / "mm-vet.json", annotations)


def write_llava_bench(folder: Path, rng: random.Random, count: int) -> None:
    """Descriptions and questions in three categories, with the image in words and a reference answer."""
    questions, contexts, references = [], [], []
    for number in range(count):
        scene, question = held_out(rng, "color")
        image = f"{number:03d}.jpg"
        save_image(scene, rng, folder / "images" / image)
        category = ("conv", "detail", "complex")[number % 3]
        text, answer = (DESCRIBE, caption(scene)) if category == "detail" else (question.text, question.answer)
        questions.append({"question_id": number, "image": image, "category": category, "text": text})
        contexts.append({"id": f"{number:03d}", "image": image, "caption": caption(scene)})
        references.append(
            {"question_id": number, "prompt": text, "answer_id": f"ref{number}", "model_id": "truth", "text": answer}
        )
    write_json_lines(folder / "questions.jsonl", questions)
    write_json_lines(folder / "context.jsonl", contexts)
    write_json_lines(folder / "answers_gpt4.jsonl", references)


def write_qbench(folder: Path, rng: random.Random, count: int) -> None:
    """Questions with candidates, under the names of both languages' files."""
    items = []
    for number in range(count):
        scene, question, shown, _ = letter_question(rng, number)
        image = f"{number:04d}.jpg"
        save_image(scene, rng, folder / "images_llvisionqa" / image)
        item = {"img_path": image, "question": question.text, "candidates": shown, "correct_ans": question.answer}
        items.append(item)
    for name in ("llvisionqa_dev", "llvisionqa_test", "质衡-问答-验证集", "质衡-问答-测试集"):
        write_json(folder / f"{name}.json", items)
