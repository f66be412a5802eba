"""Score files: what a scorer found, with one item per question, so that the report can draw new samples of it.

They are an addition to upstream's interface: every scorer writes one with `--score-file`, and none without it.
"""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llava.eval.scoring.json_files import read_json_object, require_fields, require_rows, write_json
from llava.eval.scoring.metrics import compute
from llava.program import RequestError

_FIELDS = {
    **{"benchmark": str, "experiment": str, "metric": str, "items": list, "details": dict},
    **{"expected": int, "answered": int, "run": dict},
}


@dataclass(frozen=True)
class ScoreFile:
    """One benchmark's result of one experiment.

    Attributes:
        benchmark: column of the report: "POPE", "MME", "MMB", "TextVQA", ...
        experiment: row of the report.
        metric: key of METRICS: how `items` become `score`.
        score: `compute(metric, items)`.
        items: `{"unit", "group", "value"}`: unit = what is drawn together (question, picture, circular group), group =
            category or task, value = what the metric takes.
        details: what the scorer printed, by name.
        expected: questions of the benchmark.
        answered: of them, those with an answer.
        run: facts of the run (see `run_facts`); {} where the answers tell none.
    """

    benchmark: str
    experiment: str
    metric: str
    score: float
    items: list[dict[str, Any]]
    details: dict[str, Any]
    expected: int
    answered: int
    run: dict[str, Any]


def item(unit: Any, value: Any, group: str = "all") -> dict[str, Any]:
    """One entry of `ScoreFile.items`."""
    return {"unit": str(unit), "group": group, "value": value}


def run_facts(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the answers' `metadata` (flag --record-run) tell about the run; {} where they have none.

    A field holds the answers' common value, or the list of different ones. `seconds` is the mean per answer,
    `answers` the number of answers with metadata.
    """
    records = [answer["metadata"] for answer in answers if isinstance(answer.get("metadata"), dict)]
    records = [record for record in records if record]
    if not records:
        return {}
    facts: dict[str, Any] = {}
    for field in dict.fromkeys(field for record in records for field in record):
        values = [record[field] for record in records if field in record]
        if field == "seconds":
            facts[field] = sum(map(float, values)) / len(values)
        else:
            different: list[Any] = []
            for value in values:
                if value not in different:
                    different.append(value)
            facts[field] = different[0] if len(different) == 1 else different
    return facts | {"answers": len(records)}


def experiment_name(result_file: str, experiment: str | None = None) -> str:
    """`experiment`, else the stem of the result file; for `merge.jsonl` the name of its folder."""
    if experiment:
        return experiment
    path = Path(os.path.abspath(os.path.expanduser(result_file)))
    return path.parent.name if path.stem == "merge" else path.stem


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """--score-file and --experiment, beyond upstream."""
    parser.add_argument("--score-file", help="also write the score here, for the report (default: nowhere)")
    parser.add_argument("--experiment", help="row of the report (default: from the name of the result file)")


def write_score(
    path: str | None,
    benchmark: str,
    experiment: str,
    metric: str,
    items: Sequence[dict[str, Any]],
    *,
    details: dict[str, Any],
    expected: int,
    answered: int,
    answers: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Write a score file, whole or not at all; nothing where `path` is None.

    Raises:
        RequestError: there are no items.
    """
    if path is None:
        return
    score = compute(metric, items)
    run = run_facts(answers)
    record = ScoreFile(benchmark, experiment, metric, score, list(items), details, expected, answered, run)
    write_json(path, asdict(record), indent=1)


def read_score_file(path: str) -> ScoreFile:
    """
    Raises:
        OSError: the file cannot be read.
        RequestError: it is not a score file.
    """
    names = [field.name for field in fields(ScoreFile)]
    record = read_json_object(path, names)
    require_fields(record, path, _FIELDS)
    for name in ("benchmark", "experiment"):
        if not record[name].strip():
            raise RequestError(f"{path}: {name!r} is empty; is it the right file?")
    require_rows(record["items"], path, ["unit", "group", "value"])
    require_rows(record["items"], path, {"unit": str, "group": str})
    return ScoreFile(**{name: record[name] for name in names})
