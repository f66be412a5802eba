"""Files of the answer generators: questions in, cut into chunks, answers out line by line (contract: eval.md 1)."""

import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llava.program import RequestError

# 57 signs that are not mistaken for one another; 22 of them hold the 128 bits of a UUID.
_ID_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ID_LENGTH = 22


def read_questions(path: str, required: Sequence[str]) -> list[dict[str, Any]]:
    """The questions of a JSON-lines file; empty lines are skipped.

    Raises:
        RequestError: a line is not a JSON object, or lacks one of the `required` fields; names file and line.
    """
    questions = []
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                questions.append(_parse_question(line, f"{path}, line {number}", required))
    return questions


def _parse_question(line: str, place: str, required: Sequence[str]) -> dict[str, Any]:
    try:
        question = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{place}: not JSON ({error}); the file must hold one JSON object per line") from error
    if not isinstance(question, dict):
        raise RequestError(f"{place}: not a JSON object; the file must hold one JSON object per line")
    missing = [field for field in required if field not in question]
    if missing:
        raise RequestError(f"{place}: the question has no {' and no '.join(map(repr, missing))}")
    return question


def split_list(lst: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Contiguous chunks of ceil(len / n) items; fewer than `n` when the items run out (E-2).

    Raises:
        RequestError: `n` is not positive.
    """
    if n < 1:
        raise RequestError(f"--num-chunks is {n}; it must be 1 or more")
    size = max(1, math.ceil(len(lst) / n))
    return [lst[start : start + size] for start in range(0, len(lst), size)]


def get_chunk(lst: Sequence[Any], n: int, k: int) -> Sequence[Any]:
    """Chunk `k` of `n`; empty when the items did not reach it.

    Raises:
        RequestError: there is no such chunk.
    """
    chunks = split_list(lst, n)
    if not 0 <= k < n:
        raise RequestError(f"--chunk-idx is {k}; with --num-chunks {n} it goes from 0 to {n - 1}")
    return chunks[k] if k < len(chunks) else []


@contextmanager
def answers_writer(path: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Opens an answers file anew, folder included, and gives a function that writes one answer.

    Every line reaches the file at once: a long run can be watched, and what is answered is kept when it is stopped.
    """
    path = os.path.abspath(os.path.expanduser(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:

        def write(answer: dict[str, Any]) -> None:
            file.write(json.dumps(answer) + "\n")
            file.flush()

        yield write


def answer_record(question_id: Any, prompt: str, text: str, model_id: str, **extra: Any) -> dict[str, Any]:
    """One line of an answers file; `extra` holds the fields that only some generators have."""
    return {
        "question_id": question_id,
        "prompt": prompt,
        "text": text,
        "answer_id": short_uuid(),
        "model_id": model_id,
        "metadata": {},
        **extra,
    }


def short_uuid() -> str:
    """A random UUID in 22 letters and digits."""
    number = uuid.uuid4().int
    signs = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ID_ALPHABET))
        signs.append(_ID_ALPHABET[digit])
    return "".join(signs)
