"""MME: perception, cognition and score per task, by the rules of the official tool.

There are two yes-or-no questions per image. Per task: accuracy over its questions, accuracy+ over its images (both
questions right), score = 100 * (accuracy + accuracy+). Perception and cognition are sums over 10 and 4 tasks. A reply
is lower-cased; it is `yes` or `no`, else its first four characters are searched for yes, then for no, else it is
`other`, which is wrong. A question without an answer counts as wrong, with a note.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava.eval.scoring.answers import PROMPTED_FIELDS, match_answers
from llava.eval.scoring.json_files import read_json_lines, read_text
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.files import write_text_atomically
from llava.program import RequestError

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_QUESTIONS_FOLDER, _IMAGES_FOLDER = "questions_answers_YN", "images"
_INSTRUCTIONS = ("Please answer yes or no.", "Answer the question using a single word or phrase.")


@dataclass(frozen=True)
class MmeQuestion:
    """One of the two questions about an image.

    Attributes:
        image: name of the image file.
        answer: `Yes` or `No`.
    """

    task: str
    image: str
    text: str
    answer: str

    @property
    def key(self) -> str:
        return question_key(f"{self.task}/{self.image}", self.text)


@dataclass(frozen=True)
class TaskScore:
    """Shares of right questions, and of images with both questions right, 0 to 1."""

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        return 100 * (self.accuracy + self.accuracy_plus)


def question_key(question_id: str, text: str) -> str:
    """Return the key by which answers are matched: task, stem of the image, and question, joined by tabs.

    Instructions are removed from the question, and runs of white space become one space.

    Args:
        question_id: `<task>/<image>`, with or without folders in between, as in question files.
    """
    for instruction in _INSTRUCTIONS:
        text = text.replace(instruction, " ")
    parts = question_id.replace("\\", "/").split("/")
    return "\t".join([parts[0], os.path.splitext(parts[-1])[0], " ".join(text.split())])


def read_folder(folder: str) -> list[MmeQuestion]:
    """Read all questions of the folder `MME_Benchmark_release_version`, in the order of tasks and images.

    A task's folder holds images and text files together, or in `images` and `questions_answers_YN`. A text file has two
    lines, each a question, a tab, and `Yes` or `No`. Tasks without a folder are left out.

    Raises:
        RequestError: no task has a folder, or a text file has another format; names the file.
    """
    questions: list[MmeQuestion] = []
    for task in (*PERCEPTION, *COGNITION):
        home = os.path.join(folder, task)
        if not os.path.isdir(home):
            continue
        apart = os.path.isdir(os.path.join(home, _QUESTIONS_FOLDER))
        texts = os.path.join(home, _QUESTIONS_FOLDER) if apart else home
        images = _images(os.path.join(home, _IMAGES_FOLDER) if apart else home)
        for name in sorted(os.listdir(texts)):
            stem, suffix = os.path.splitext(name)
            if suffix == ".txt":
                questions += _read_questions(os.path.join(texts, name), task, images.get(stem, f"{stem}.jpg"))
    if not questions:
        raise RequestError(
            f"{folder} has no folder of a task of MME ({', '.join(PERCEPTION[:3])}, ...) with questions in it; it "
            "should be MME_Benchmark_release_version"
        )
    return questions


def _images(folder: str) -> dict[str, str]:
    """Stem -> file name."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {os.path.splitext(name)[0]: name for name in sorted(names) if not name.endswith(".txt")}


def _read_questions(path: str, task: str, image: str) -> list[MmeQuestion]:
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    fields = [line.split("\t") for line in lines]
    if len(fields) != 2 or any(len(parts) != 2 or parts[1].lower() not in ("yes", "no") for parts in fields):
        raise RequestError(f"{path}: not two lines of a question, a tab, and Yes or No")
    return [MmeQuestion(task, image, text, answer) for text, answer in fields]


def parse_reply(text: str) -> str:
    """Return `yes`, `no` or `other`."""
    text = text.strip().lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def score_replies(questions: Sequence[MmeQuestion], replies: Sequence[str]) -> dict[str, TaskScore]:
    """Return task -> score, in the official order.

    Args:
        replies: one per question; an empty text if there is none.
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for question, reply in zip(questions, replies, strict=True):
        images = right.setdefault(question.task, {})
        images.setdefault(question.image, []).append(_is_right(question, reply))
    return {task: _task_score(list(images.values())) for task, images in right.items()}


def _is_right(question: MmeQuestion, reply: str) -> bool:
    return parse_reply(reply) == question.answer.lower()


def _task_score(images: Sequence[Sequence[bool]]) -> TaskScore:
    answers = [answer for image in images for answer in image]
    return TaskScore(sum(answers) / len(answers), sum(map(all, images)) / len(images))


def write_results(folder: str, questions: Sequence[MmeQuestion], replies: Iterable[str]) -> None:
    """Write `<task>.txt` for each task in the format of the official tool: image, question, answer, reply."""
    lines: dict[str, list[str]] = {}
    for question, reply in zip(questions, replies, strict=True):
        columns = (question.image, question.text, question.answer, " ".join(reply.split()))
        lines.setdefault(question.task, []).append("\t".join(columns) + "\n")
    for task, rows in lines.items():
        write_text_atomically(os.path.join(folder, f"{task}.txt"), "".join(rows))


def score(data_dir: str, result_file: str, results_dir: str | None = None) -> Score:
    """Score answers to MME; `results_dir` takes the official tool's files. Unusable input raises RequestError."""
    questions = read_folder(data_dir)
    answers = [
        row | {"key": question_key(str(row["question_id"]), row["prompt"])}
        for row in read_json_lines(result_file, PROMPTED_FIELDS)
    ]
    keys = [question.key for question in questions]
    by_key, coverage = match_answers(keys, answers, result_file, id_field="key")
    replies = [by_key[key]["text"] if key in by_key else "" for key in keys]
    scores = score_replies(questions, replies)
    notes = coverage.warnings("count as wrong")
    absent = [task for task in (*PERCEPTION, *COGNITION) if task not in scores]
    if absent:
        notes.append(f"{data_dir} lacks {len(absent)} of 14 tasks, so these sums are not MME's: {', '.join(absent)}")
    if results_dir is not None:
        write_results(results_dir, questions, replies)
    lines, sums = [], {}
    for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = {task: scores[task] for task in tasks if task in scores}
        sums[name] = sum(entry.score for entry in present.values())
        lines += [f"=========== {name.capitalize()} ===========", f"total score: {sums[name]:.2f}"]
        for task, entry in present.items():
            shares = f"acc {100 * entry.accuracy:.2f}%, acc+ {100 * entry.accuracy_plus:.2f}%"
            lines.append(f"\t{task} score: {entry.score:.2f} ({shares})")
    return Score(
        "MME",
        result_file,
        "mme",
        [
            item(f"{question.task}/{question.image}", int(_is_right(question, reply)), question.task)
            for question, reply in zip(questions, replies, strict=True)
        ],
        details={
            **sums,
            "tasks": {task: entry.score for task, entry in scores.items()},
            "tasks_missing": absent,
            "other": sum(parse_reply(reply) == "other" for reply in replies),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        lines=lines,
        notes=notes,
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", required=True, help="MME_Benchmark_release_version")
    parser.add_argument("--result-file", required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--results-dir", help="also write <task>.txt here, for the official tool")


BENCHMARK = Benchmark(__doc__, _add_arguments, lambda args: score(args.data_dir, args.result_file, args.results_dir))
