"""Filters a training run's output on stdin down to about ten lines of its progress bar, as they come."""

import re
import sys
from collections.abc import Iterator
from typing import TextIO

STEP = re.compile(r"\| (\d+)/(\d+) \[.*loss=")


def lines(stream: TextIO) -> Iterator[str]:
    """Lines that end with a line feed, or with the carriage return by which a progress bar redraws itself."""
    text = ""
    while character := stream.read(1):
        if character in "\r\n":
            yield text
            text = ""
        else:
            text += character
    yield text


def main() -> None:
    due = 0.0
    for line in lines(sys.stdin):
        found = STEP.search(line)
        if not found:
            continue
        step, total = map(int, found.groups())
        if step >= due:
            print(f"  {line.strip()}", flush=True)
            due = step + total / 10


if __name__ == "__main__":
    main()
