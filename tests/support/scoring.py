"""Small input files for scorers and converters, and their runs in this process."""

import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.eval.scoring.score_file import ScoreFile, read_score_file
from llava.eval.scoring.scorer import Benchmark, run_scorer
from tests.conftest import REPOSITORY

RESULTS = "--result-file"

Capture = pytest.CaptureFixture[str]


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a JSON-lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_answers(texts: Mapping[Any, str], **fields: Any) -> str:
    """Return the text of an answers file: question id -> reply; `fields` are added to every line."""
    return as_lines({"question_id": name, "text": text} | fields for name, text in texts.items())


def write_files(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Write one file per flag and return the flags with their paths.

    A string is the text of the file, any other value is written as JSON; a Path is passed on. The answers are called
    `model.jsonl`.
    """
    argv = []
    for flag, content in files.items():
        path = content
        if not isinstance(content, Path):
            path = folder / ("model.jsonl" if flag == RESULTS else f"{flag.strip('-')}.json")
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        argv += [flag, str(path)]
    return argv


def score(benchmark: Benchmark, folder: Path, files: Mapping[str, Any], *flags: str) -> ScoreFile:
    """Run a scorer on these files and return its score file."""
    score_file = str(folder / "score.json")
    run_scorer(benchmark, [*write_files(folder, files), "--score-file", score_file, *flags])
    return read_score_file(score_file)


def program(path: str) -> Callable[[Sequence[object]], None]:
    """Return a function that runs a program of the repository in this process, with the given arguments."""
    names = runpy.run_path(str(REPOSITORY / path))

    def run(argv: Sequence[object]) -> None:
        words = [str(word) for word in argv]
        if "BENCHMARK" in names:
            run_scorer(names["BENCHMARK"], words)
        else:
            names["main"](names["build_parser"]().parse_args(words))

    return run
