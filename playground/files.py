"""JSON files of the playground, written atomically."""

import json
from pathlib import Path
from typing import Any

from llava.files import write_atomically, write_text_atomically


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`."""
    write_atomically(str(path), lambda temporary: Path(temporary).write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final line break."""
    write_text_atomically(str(path), json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text_atomically(str(path), "".join(json.dumps(row) + "\n" for row in rows))
