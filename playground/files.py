"""Files are written whole or not at all: to a temporary name first, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; the folder must exist."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final line break."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
