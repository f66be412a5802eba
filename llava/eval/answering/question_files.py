"""Question files, and the part of them that a run answers."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llava.eval.answering.queries import Query
from llava.eval.scoring.json_files import read_json_lines
from llava.program import RequestError

Item = TypeVar("Item")


def split_list(lst: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Cut a list into contiguous chunks of ceil(len / n) items; fewer than `n` chunks if the items run out.

    Raises:
        RequestError: `n` is not positive.
    """
    if n < 1:
        raise RequestError(f"--num-chunks is {n}; it must be 1 or more")
    size = max(1, math.ceil(len(lst) / n))
    return [lst[start : start + size] for start in range(0, len(lst), size)]


def get_chunk(lst: Sequence[Any], n: int, k: int) -> Sequence[Any]:
    """Return chunk `k` of `n`; an empty one if the items run out before it, where upstream fails.

    Raises:
        RequestError: there is no such chunk.
    """
    chunks = split_list(lst, n)
    if not 0 <= k < n:
        raise RequestError(f"--chunk-idx is {k}; with --num-chunks {n} it goes from 0 to {n - 1}")
    return chunks[k] if k < len(chunks) else []


@dataclass(frozen=True)
class Selection:
    """The part of a question file that a run answers.

    Attributes:
        limit: number of questions, from the start of the file; None for all.
        num_chunks: number of contiguous chunks into which these are cut.
        chunk_idx: the chunk to answer, from 0.

    Raises:
        RequestError: the limit is negative.
    """

    limit: int | None = None
    num_chunks: int = 1
    chunk_idx: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise RequestError(f"--limit is {self.limit}; it must be 0 or more")

    def of(self, questions: Sequence[Item]) -> Sequence[Item]:
        """Return the selected questions.

        Raises:
            RequestError: there is no such chunk.
        """
        return get_chunk(questions[: self.limit], self.num_chunks, self.chunk_idx)


def read_image_questions(question_file: str, image_folder: str, selection: Selection) -> list[Query]:
    """Read the selected questions of a JSON-lines file, each about one image.

    Raises:
        OSError: the file cannot be read.
        RequestError: the file has another format, or there is no such chunk.
    """
    questions = read_json_lines(question_file, {"question_id": str | int, "image": str, "text": str})
    return [
        Query(
            fields={"question_id": question["question_id"], "prompt": question["text"]},
            message=question["text"],
            image=image_path(image_folder, question["image"]),
        )
        for question in selection.of(questions)
    ]


def image_path(folder: str, name: str) -> str:
    """Return the path of a question's image; `~` is expanded."""
    return os.path.join(os.path.expanduser(folder), name)
