"""JSON and JSON-lines files: read with checks that name file, line and field; written atomically."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llava.files import write_text_atomically
from llava.program import RequestError

# Required fields of an object: names, or names with the type of their values (a key of _KINDS).
Fields = Sequence[str] | Mapping[str, Any]

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_KINDS: Mapping[Any, str] = {
    str: "a text",
    int: "a whole number",
    str | int: "a text or a whole number",
    str | list: "a text or a list",
    list: "a list",
    list[str]: "a list of texts",
    dict: "an object",
    dict[str, str]: "an object of texts",
}


def read_text(path: str) -> str:
    """Return the text of a file in UTF-8; `~` is expanded.

    Raises:
        OSError: the file cannot be read.
        RequestError: the file is not text in UTF-8.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not a text file in UTF-8; is it the right file?") from error


def read_json(path: str) -> Any:
    """Return the value of a JSON file; `~` is expanded.

    Raises:
        OSError: the file cannot be read.
        RequestError: the file is not JSON; names file and line.
    """
    return _parse(read_text(path), path, "is it the right file?")


def read_json_object(path: str, required: Fields = ()) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        OSError: the file cannot be read.
        RequestError: the file holds something else, or lacks required fields; names the file.
    """
    value = read_json(path)
    require_fields(value, path, required)
    return value


def read_json_lines(path: str, required: Fields = ()) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; empty lines are skipped, `~` is expanded.

    Raises:
        OSError: the file cannot be read.
        RequestError: a line is not a JSON object, or lacks required fields; names file and line.
    """
    return [parse_object(line, f"{path}, line {number}", required) for number, line in _lines(path)]


def read_readable_lines(path: str, required: Fields = ()) -> tuple[list[dict[str, Any]], int]:
    """Return the readable objects of a JSON-lines file, and the number of unreadable lines.

    As upstream's converters do, an empty line counts as unreadable.
    """
    rows, failures = [], 0
    for number, line in _lines(path, skip_empty=False):
        try:
            rows.append(parse_object(line, f"{path}, line {number}", required))
        except RequestError:
            failures += 1
    return rows, failures


def read_rows(path: str, required: Fields = ()) -> list[dict[str, Any]]:
    """Return the objects of a file that holds a JSON list or JSON lines.

    Raises:
        OSError: the file cannot be read.
        RequestError: the file holds neither, or an object lacks required fields; names the place.
    """
    if not read_text(path).lstrip().startswith("["):
        return read_json_lines(path, required)
    rows = read_json(path)
    require_rows(rows, path, required)
    return rows


def parse_object(line: str, place: str, required: Fields = ()) -> dict[str, Any]:
    """Return the object of one line of a JSON-lines file; `place` names it in error messages.

    Raises:
        RequestError: the line is not a JSON object, or lacks required fields.
    """
    value = _parse(line, place, "the file must hold one JSON object per line")
    if not isinstance(value, dict):
        raise RequestError(f"{place}: not a JSON object; the file must hold one JSON object per line")
    require_fields(value, place, required)
    return value


def require_fields(value: Any, place: str, required: Fields) -> None:
    """Check the fields of an object.

    Raises:
        RequestError: the value is not an object, or a field is missing or has another type; names place and field.
    """
    if not isinstance(value, dict):
        raise RequestError(f"{place}: not a JSON object; is it the right file?")
    missing = [field for field in required if field not in value]
    if missing:
        raise RequestError(f"{place}: there is no {' and no '.join(map(repr, missing))}; is it the right file?")
    if isinstance(required, Mapping):
        for field, kind in required.items():
            if not _is(value[field], kind):
                raise RequestError(f"{place}: {field!r} is not {_KINDS[kind]} but {str(value[field])[:40]!r}")


def require_rows(rows: Iterable[Any], place: str, required: Fields) -> None:
    """Check the fields of each of many objects.

    Raises:
        RequestError: an object does not pass `require_fields`; names the entry, counted from 1.
    """
    for number, row in enumerate(rows, start=1):
        require_fields(row, f"{place}, entry {number}", required)


def _is(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return isinstance(value, kind) and not isinstance(value, bool)


def path_below(folder: str, name: str) -> str:
    """Return the path of `name`, which may contain folders, below `folder`; `~` is expanded.

    Raises:
        RequestError: the path is outside the folder.
    """
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise RequestError(f"{name!r} leads out of {folder}; give a plain name")
    return os.path.join(os.path.expanduser(folder), name)


def write_json(path: str, value: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically; a missing folder is created."""
    write_text_atomically(os.path.expanduser(path), json.dumps(value, indent=indent))


def write_json_lines(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON-lines file atomically; a missing folder is created."""
    write_text_atomically(os.path.expanduser(path), "".join(json.dumps(row) + "\n" for row in rows))


def _parse(text: str, place: str, remedy: str) -> Any:
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # half a surrogate pair can be neither printed nor written
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise RequestError(f"{place}{line}: not JSON ({error.msg}); {remedy}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, or deep nesting
        raise RequestError(f"{place}: not JSON that can be read ({error}); {remedy}") from error


def _lines(path: str, skip_empty: bool = True) -> Iterator[tuple[int, str]]:
    # Not splitlines: a JSON string may contain U+2028 and similar characters.
    lines = read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()  # the text ends with a newline
    for number, line in enumerate(lines, start=1):
        if line.strip() or not skip_empty:
            yield number, line
