"""Question files of the answer generators, cut into chunks (contract: eval.md 1)."""

import math
import os
from collections.abc import Sequence
from typing import Any

from llava.eval.answering.queries import Query
from llava.eval.scoring.json_files import read_json_lines
from llava.program import RequestError


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


def select_questions(questions: Sequence[Any], args: Any) -> Sequence[Any]:
    """The questions that `--limit`, then `--num-chunks` and `--chunk-idx` leave.

    Args:
        args: any object with the flags as attributes; those it lacks leave everything.

    Raises:
        RequestError: there is no such chunk, or the limit is negative.
    """
    limit = getattr(args, "limit", None)
    if limit is not None and limit < 0:
        raise RequestError(f"--limit is {limit}; it must be 0 or more")
    return get_chunk(questions[:limit], getattr(args, "num_chunks", 1), getattr(args, "chunk_idx", 0))


def read_picture_questions(args: Any) -> list[Query]:
    """The chosen questions of `args.question_file`, each about one picture below `args.image_folder`.

    Raises:
        RequestError: bad question file, or no such chunk.
    """
    questions = read_json_lines(args.question_file, {"question_id": str | int, "image": str, "text": str})
    return [
        Query(
            fields={"question_id": question["question_id"], "prompt": question["text"]},
            message=question["text"],
            image=picture_path(args.image_folder, question["image"]),
        )
        for question in select_questions(questions, args)
    ]


def picture_path(folder: str, name: str) -> str:
    """Where a question's picture is; `~` is expanded."""
    return os.path.join(os.path.expanduser(folder), name)
