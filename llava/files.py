"""Atomic writes: a file or folder is written completely or not at all."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Nothing is left behind, and an older file stays as it was, if writing fails.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def write_folder_atomically(folder: str) -> Iterator[str]:
    """A temporary folder inside `folder`; when the block succeeds, each of its files is moved into place.

    Other files of `folder` stay. If the block fails, nothing of it is left.
    """
    os.makedirs(folder, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=folder, prefix=".saving-")
    try:
        yield temporary
        for name in sorted(os.listdir(temporary)):
            os.replace(os.path.join(temporary, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(temporary)


def write_text_atomically(path: str, text: str) -> None:
    """Write UTF-8 text atomically."""

    def write(temporary: str) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)

    write_atomically(path, write)
