"""The records of a data file, kept as the text they come from.

As Python objects the records of 558k captions take 0.7 GB in every process, and each worker of a data loader copies
them bit by bit, since reading an object writes its reference count. As one block of bytes they take a quarter, shared
by all workers.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, TextIO, overload

import numpy as np

CHUNK = 1 << 22  # characters that are read at a time
_SPACE = re.compile(r"\s*")


class Records(Sequence[dict[str, Any]]):
    """Records, parsed anew at every access: changes of a record that was returned are not kept.

    Args:
        lines: the JSON text of every record, in UTF-8.
    """

    def __init__(self, lines: Iterator[bytes]) -> None:
        text, ends = bytearray(), array("q", [0])
        for line in lines:
            text += line
            ends.append(len(text))
        self._text = text  # never changed: a copy as bytes would need the room twice while loading
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        return json.loads(self._text[self._ends[place] : self._ends[place + 1]])


def load_records(data_path: str) -> Records:
    """The records of a `.json` file (one list) or a `.jsonl` file (one object per line).

    Raises:
        ValueError: the file is not such a list, or a record has no conversation.
    """
    with open(data_path, encoding="utf-8") as file:
        parsed = _parse_lines(file) if data_path.endswith(".jsonl") else _parse_list(file, data_path)
        try:
            return Records(_checked(parsed, data_path))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"'{data_path}' is not valid JSON ({error}). Use a list of records, or a .jsonl file with one per line."
            ) from error


def _checked(records: Iterator[Any], data_path: str) -> Iterator[bytes]:
    for index, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
            raise ValueError(f"'{data_path}': record {index} has no list of 'conversations' (see docs/data.md).")
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        yield text.encode("utf-8", "surrogatepass")  # json.loads reads halves of a pair back, too


def _parse_lines(file: TextIO) -> Iterator[Any]:
    return (json.loads(line) for line in file if line.strip())


def _parse_list(file: TextIO, data_path: str) -> Iterator[Any]:
    """The entries of a JSON list, one at a time: the whole list as objects would take five times the file's size."""
    text = _Text(file)
    if text.next_character() != "[":
        kind = type(json.loads(text.rest())).__name__
        raise ValueError(f"'{data_path}' holds a {kind}, not a list of records (see docs/data.md).")
    text.position += 1
    if text.next_character() != "]":
        yield text.value()
        while text.next_character() == ",":
            text.position += 1
            yield text.value()
    if text.next_character() != "]":
        raise json.JSONDecodeError("Expecting ',' delimiter", text.buffer, text.position)
    text.position += 1
    if text.next_character():
        raise json.JSONDecodeError("Extra data", text.buffer, text.position)


class _Text:
    """A text file that is read piece by piece."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.buffer = ""
        self.position = 0
        self.decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """The next one that is no white space, where `position` stands then; empty at the end."""
        while True:
            self.position = _SPACE.match(self.buffer, self.position).end()
            if self.position < len(self.buffer) or not self._read():
                return self.buffer[self.position : self.position + 1]

    def value(self) -> Any:
        """The JSON value that follows."""
        self.next_character()
        while True:
            try:
                value, self.position = self.decoder.raw_decode(self.buffer, self.position)
                return value
            except json.JSONDecodeError:
                if not self._read():
                    raise

    def rest(self) -> str:
        return self.buffer[self.position :] + self.file.read()

    def _read(self) -> bool:
        """Read on, at least as much as is not used yet; False at the end."""
        unused = self.buffer[self.position :]
        more = self.file.read(max(CHUNK, len(unused)))
        self.buffer, self.position = unused + more, 0
        return bool(more)
