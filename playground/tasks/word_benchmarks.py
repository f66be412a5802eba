"""Held-out scenes as the benchmarks that ask for a word, in their own files and folders.

Every function fills one folder and takes its scenes from the same generator, so a seed fixes everything.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import write_json, write_json_lines
from ..world.language import FACTS, Question, absent_pair, ask
from ..world.render import blank_image, draw_scene
from ..world.scene import COLORS, PLACES, SHAPES, Scene, sample_split_scene
from .answer_formats import OCR_HINT, SHORT_ANSWER

SHORT_CATEGORIES = ("color", "shape", "count", "position", "yesno", "word")
NUM_HUMANS = 10


def held_out(rng: random.Random, category: str) -> tuple[Scene, Question]:
    """A held-out scene that allows a question of the category, and the question."""
    while True:
        scene = sample_split_scene(rng, held_out=True)
        question = ask(scene, rng, category)
        if question is not None:
            return scene, question


def save_image(scene: Scene | None, rng: random.Random, path: Path) -> None:
    """The scene as an image in the format of the path's ending; None is the gray one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (blank_image() if scene is None else draw_scene(scene, rng)).save(path, quality=95)


def short_questions(rng: random.Random, count: int, folder: Path, name: str) -> Iterator[tuple[str, Question]]:
    """`count` images in the folder, `name` with a number in it, and one question about each, kinds in turn."""
    for number in range(count):
        scene, question = held_out(rng, SHORT_CATEGORIES[number % len(SHORT_CATEGORIES)])
        file_name = name.format(number)
        save_image(scene, rng, folder / file_name)
        yield file_name, question


def human_answers(answer: str, rng: random.Random) -> list[str]:
    """Ten people's answers; some of them see something else."""
    return [answer if rng.random() < 0.9 else "unanswerable" for _ in range(NUM_HUMANS)]


def _absent(category: str, scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A colour and shape that the scene lacks, as hard as POPE's category says."""
    if category == "adversarial":
        return absent_pair(scene, rng)
    present = {(item.color, item.shape) for item in scene.items}
    colors, shapes = (COLORS[:2], SHAPES[:2]) if category == "popular" else (COLORS, SHAPES)
    return rng.choice([(color, shape) for color in colors for shape in shapes if (color, shape) not in present])


def write_pope(folder: Path, rng: random.Random, count: int) -> None:
    """Yes and no in turn. What is not there is drawn from everything, from what is common, or from what is near."""
    questions: list[dict[str, Any]] = []
    for category in ("adversarial", "popular", "random"):
        labels = []
        for number in range(count):
            scene = sample_split_scene(rng, held_out=True)
            image = f"COCO_val2014_{category}_{number:06d}.jpg"
            save_image(scene, rng, folder / "val2014" / image)
            label = ("yes", "no")[number % 2]
            present = sorted({(item.color, item.shape) for item in scene.items})
            color, shape = rng.choice(present) if label == "yes" else _absent(category, scene, rng)
            text = f"Is there a {color} {shape}?"
            labels.append({"question_id": number + 1, "image": image, "text": text, "label": label})
            row = {"question_id": len(questions), "image": image, "text": text + SHORT_ANSWER, "category": category}
            questions.append(row)
        (folder / "coco").mkdir(exist_ok=True)
        write_json_lines(folder / "coco" / f"coco_pope_{category}.json", labels)
    write_json_lines(folder / "llava_pope_test.jsonl", questions)


def _yes_and_no(task: str, scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Two questions of a task about one scene, of which the first is right."""
    item = rng.choice(scene.items)
    if task == "existence":
        absent = rng.choice([shape for shape in SHAPES if all(other.shape != shape for other in scene.items)])
        return f"Is there a {item.shape}?", f"Is there a {absent}?"
    if task == "color":
        color, shape = absent_pair(scene, rng)
        return f"Is there a {item.color} {item.shape}?", f"Is there a {color} {shape}?"
    phrases = {"left": "on the left", "right": "on the right", "middle": "in the middle"}
    free = rng.choice([place for place in PLACES if all(other.place != place for other in scene.items)])
    return tuple(f"Is there a shape {phrases.get(place, place)}?" for place in (item.place, free))


def write_mme(folder: Path, rng: random.Random, count: int) -> None:
    """Four of MME's tasks, `count` images each, two questions per image, in both of its folder layouts."""
    release = folder / "MME_Benchmark_release_version"
    facts = {answer: [question for question, given in FACTS if given == answer] for answer in ("yes", "no")}
    rows: list[dict[str, Any]] = []
    for task in ("existence", "color", "position", "commonsense_reasoning"):
        split = task == "position"
        for number in range(count if task != "commonsense_reasoning" else min(count, *map(len, facts.values()))):
            if task == "commonsense_reasoning":
                scene, pair = None, (facts["yes"][number], facts["no"][number])
            else:
                scene = sample_split_scene(rng, held_out=True)
                pair = _yes_and_no(task, scene, rng)
            images = release / task / "images" if split else release / task
            texts = release / task / "questions_answers_YN" if split else release / task
            save_image(scene, rng, images / f"{number:04d}.png")
            texts.mkdir(exist_ok=True)
            lines = [
                f"{text} Please answer yes or no.\t{word}\n" for text, word in zip(pair, ("Yes", "No"), strict=True)
            ]
            (texts / f"{number:04d}.txt").write_text("".join(lines), encoding="utf-8")
            name = f"{task}/{number:04d}.png"
            image = f"{task}/images/{number:04d}.png" if split else name
            rows += [{"question_id": name, "image": image, "text": q + SHORT_ANSWER, "category": task} for q in pair]
    write_json_lines(folder / "llava_mme.jsonl", rows)


def write_gqa(folder: Path, rng: random.Random, count: int) -> None:
    """Questions of all kinds, and their answers as the balanced test-dev file has them."""
    rows, annotations = [], {}
    for number, (image, question) in enumerate(short_questions(rng, count, folder / "data/images", "n{:06d}.jpg")):
        id_ = f"20{number:06d}"
        rows.append({"question_id": id_, "image": image, "text": question.text + SHORT_ANSWER, "category": "default"})
        annotations[id_] = {
            "imageId": Path(image).stem,
            "question": question.text,
            "answer": question.answer,
            "isBalanced": True,
            "types": {
                "structural": "verify" if question.category == "yesno" else "query",
                "semantic": "attr" if question.category in ("color", "shape") else "rel",
            },
        }
    write_json_lines(folder / "llava_gqa_testdev_balanced.jsonl", rows)
    write_json(folder / "data" / "testdev_balanced_questions.json", annotations)


def write_vqav2(folder: Path, rng: random.Random, count: int) -> None:
    """The full test file, its test-dev half, and ten people's answers to that as the public splits have them."""
    rows, annotations = [], []
    for number, (image, question) in enumerate(short_questions(rng, count, folder / "test2015", "COCO_{:012d}.jpg")):
        rows.append({"question_id": number * 1000, "image": image, "text": question.text + SHORT_ANSWER})
        answers = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
            for place, answer in enumerate(human_answers(question.answer, rng))
        ]
        kind = {"yesno": "yes/no", "count": "number"}.get(question.category, "other")
        annotations.append(
            {
                "question_id": number * 1000,
                "image_id": number,
                "question_type": " ".join(question.text.lower().split()[:2]),
                "answer_type": kind,
                "multiple_choice_answer": question.answer,
                "answers": answers,
            }
        )
    write_json_lines(folder / "llava_vqav2_mscoco_test2015.jsonl", rows)
    half = -(-count // 2)
    write_json_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", rows[:half])
    write_json(folder / "v2_mscoco_test-dev2015_annotations.json", {"annotations": annotations[:half]})


def write_vizwiz(folder: Path, rng: random.Random, count: int) -> None:
    """VizWiz's questions, and the answers of ten people as its public split has them."""
    hint = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    rows, annotations = [], []
    for image, question in short_questions(rng, count, folder / "test", "VizWiz_test_{:08d}.jpg"):
        rows.append({"question_id": image, "image": image, "text": question.text + hint + SHORT_ANSWER})
        answers = [{"answer": answer, "answer_confidence": "yes"} for answer in human_answers(question.answer, rng)]
        kind = {"yesno": "yes/no", "count": "number"}.get(question.category, "other")
        row = {"image": image, "question": question.text, "answers": answers, "answer_type": kind, "answerable": 1}
        annotations.append(row)
    write_json_lines(folder / "llava_test.jsonl", rows)
    write_json(folder / "test.json", annotations)


def write_textvqa(folder: Path, rng: random.Random, count: int) -> None:
    """Words to read; half of the questions name what an OCR system has read."""
    rows, annotations = [], []
    for number in range(count):
        scene, question = held_out(rng, "word")
        image_id = f"{number:016x}"
        save_image(scene, rng, folder / "train_images" / f"{image_id}.jpg")
        text = question.text + OCR_HINT + (question.answer if number % 2 else "") + SHORT_ANSWER
        rows.append({"question_id": image_id, "image": f"{image_id}.jpg", "text": text, "category": "default"})
        answers = human_answers(question.answer, rng)
        row = {"question_id": number, "image_id": image_id, "question": question.text, "answers": answers}
        annotations.append(row)
    write_json_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": annotations})
