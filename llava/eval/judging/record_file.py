"""JSON-lines files of judged records, which a killed run can continue."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llava.eval.scoring.json_files import parse_object
from llava.program import RequestError

Record = Mapping[str, Any]


@contextmanager
def open_records(path: str, append: bool) -> Iterator[tuple[int, Callable[[Record], None]]]:
    """Open a file of records and yield the number of lines it keeps, and a function that adds a record.

    Every record is flushed at once. Missing folders are created; `~` is expanded.

    Args:
        append: keep the lines of an earlier run. A partial last line, left by a killed run, is removed.

    Raises:
        RequestError: with `append`, the file holds something other than JSON objects.
    """
    path = os.path.abspath(os.path.expanduser(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    done = _repair_last_line(path) if append and os.path.exists(path) else 0
    with open(path, "a" if append else "w", encoding="utf-8") as file:

        def write(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        yield done, write


def _repair_last_line(path: str) -> int:
    """Remove a partial last line, or terminate a complete one; return the number of lines."""
    with open(path, "rb+") as file:
        lines = file.read().split(b"\n")
        last = lines.pop()
        if _is_complete(last):
            lines.append(last)
            file.write(b"\n")
        else:
            file.seek(-len(last), os.SEEK_END)
            file.truncate()
    for number, line in enumerate(lines, start=1):
        parse_object(line.decode("utf-8", "replace"), f"{path}, line {number}")
    return len(lines)


def _is_complete(line: bytes) -> bool:
    try:
        parse_object(line.decode("utf-8", "replace"), "")
    except RequestError:
        return False
    return True
