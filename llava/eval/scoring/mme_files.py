"""MME's folder of pictures and questions, and the result files that its own tool reads."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava.eval.scoring.json_files import read_text
from llava.files import write_text_atomically
from llava.program import RequestError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_QUESTIONS_FOLDER, _PICTURES_FOLDER = "questions_answers_YN", "images"
_INSTRUCTIONS = ("Please answer yes or no.", "Answer the question using a single word or phrase.")


@dataclass(frozen=True)
class MmeQuestion:
    """One of the two questions about a picture.

    Attributes:
        picture: name of the picture's file.
        answer: `Yes` or `No`.
    """

    task: str
    picture: str
    text: str
    answer: str

    @property
    def key(self) -> tuple[str, str, str]:
        """How an answer is recognised: see `question_key`."""
        return question_key(f"{self.task}/{self.picture}", self.text)


def question_key(question_id: str, text: str) -> tuple[str, str, str]:
    """Task, stem of the picture, and the question without instructions and with single spaces.

    Args:
        question_id: `<task>/<picture>`, with or without folders between, as question files have it.
    """
    for instruction in _INSTRUCTIONS:
        text = text.replace(instruction, " ")
    parts = question_id.replace("\\", "/").split("/")
    return parts[0], os.path.splitext(parts[-1])[0], " ".join(text.split())


def read_folder(folder: str) -> list[MmeQuestion]:
    """All questions of the folder `MME_Benchmark_release_version`, in the order of tasks and pictures.

    A task's folder holds pictures and text files together, or in `images` and `questions_answers_YN`. A text file has
    two lines, `question<tab>Yes` or `No`. Tasks whose folder is missing are left out.

    Raises:
        RequestError: no task has a folder, or a text file is not of this form; names the file.
    """
    questions: list[MmeQuestion] = []
    for task in (*PERCEPTION, *COGNITION):
        home = os.path.join(folder, task)
        if not os.path.isdir(home):
            continue
        apart = os.path.isdir(os.path.join(home, _QUESTIONS_FOLDER))
        texts = os.path.join(home, _QUESTIONS_FOLDER) if apart else home
        pictures = _pictures(os.path.join(home, _PICTURES_FOLDER) if apart else home)
        for name in sorted(os.listdir(texts)):
            stem, suffix = os.path.splitext(name)
            if suffix == ".txt":
                questions += _read_questions(os.path.join(texts, name), task, pictures.get(stem, f"{stem}.jpg"))
    if not questions:
        raise RequestError(
            f"{folder} has no folder of a task of MME ({', '.join(PERCEPTION[:3])}, ...) with questions in it; it "
            "should be MME_Benchmark_release_version"
        )
    return questions


def _pictures(folder: str) -> dict[str, str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {os.path.splitext(name)[0]: name for name in sorted(names) if not name.endswith(".txt")}


def _read_questions(path: str, task: str, picture: str) -> list[MmeQuestion]:
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    fields = [line.split("\t") for line in lines]
    if len(fields) != 2 or any(len(parts) != 2 or parts[1].lower() not in ("yes", "no") for parts in fields):
        raise RequestError(f"{path}: not two lines of a question, a tab, and Yes or No")
    return [MmeQuestion(task, picture, text, answer) for text, answer in fields]


def write_results(folder: str, questions: Sequence[MmeQuestion], replies: Iterable[str]) -> None:
    """`<task>.txt` for each task, as in the official tool's `Your_Results`: picture, question, answer, reply."""
    lines: dict[str, list[str]] = {}
    for question, reply in zip(questions, replies, strict=True):
        columns = (question.picture, question.text, question.answer, " ".join(reply.split()))
        lines.setdefault(question.task, []).append("\t".join(columns) + "\n")
    for task, rows in lines.items():
        write_text_atomically(os.path.join(folder, f"{task}.txt"), "".join(rows))
