"""Score files: a benchmark's score with one item per question, from which the report draws bootstrap samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from llava.eval.scoring.json_files import read_json_object, require_fields, require_rows, write_json
from llava.eval.scoring.metrics import compute
from llava.program import RequestError

_FIELDS = {
    **{"benchmark": str, "experiment": str, "metric": str, "items": list, "details": dict},
    **{"expected": int, "answered": int, "run": dict},
}


@dataclass(frozen=True)
class Score:
    """The result of scoring one file of answers.

    Attributes:
        benchmark: column of the report: "POPE", "MME", "MMB", "TextVQA", ...
        result_file: path of the answers; by default the experiment is named after it.
        metric: key of METRICS that computes the score from `items`.
        items: one entry per scored question, made by `item`.
        details: further figures by name.
        expected: number of questions of the benchmark.
        answered: number of questions with an answer.
        lines: the report on standard output.
        notes: warnings for standard error.
        answers: the answers, whose `metadata` (flag --record-run) describes the run.
    """

    benchmark: str
    result_file: str
    metric: str
    items: Sequence[dict[str, Any]]
    details: dict[str, Any]
    expected: int
    answered: int
    lines: Sequence[str] = ()
    notes: Sequence[str] = ()
    answers: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class ScoreFile:
    """The content of a score file: fields of `Score`, and these.

    Attributes:
        experiment: row of the report.
        score: `compute(metric, items)`.
        run: settings of the run, see `recorded_run`; {} if the answers do not record them.
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
    """Return one entry of `ScoreFile.items`.

    Args:
        unit: what the bootstrap draws as a whole: a question, an image or a circular group.
        value: input of the metric.
        group: category or task.
    """
    return {"unit": str(unit), "group": group, "value": value}


def recorded_run(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the answers' `metadata` (flag --record-run); {} if no answer has any.

    A field holds the common value of all answers, or the list of different values. `seconds` is the mean per answer,
    `answers` the number of answers with metadata.
    """
    records = [answer["metadata"] for answer in answers if isinstance(answer.get("metadata"), dict)]
    records = [record for record in records if record]
    if not records:
        return {}
    run: dict[str, Any] = {}
    for field in dict.fromkeys(field for record in records for field in record):
        values = [record[field] for record in records if field in record]
        if field == "seconds":
            run[field] = sum(map(float, values)) / len(values)
        else:
            different: list[Any] = []  # not a set: values may be unhashable
            for value in values:
                if value not in different:
                    different.append(value)
            run[field] = different[0] if len(different) == 1 else different
    return run | {"answers": len(records)}


def write_score_file(path: str, score: Score, experiment: str) -> None:
    """Write a score file atomically.

    Raises:
        RequestError: there are no items.
    """
    record = ScoreFile(
        benchmark=score.benchmark,
        experiment=experiment,
        metric=score.metric,
        score=compute(score.metric, score.items),
        items=list(score.items),
        details=score.details,
        expected=score.expected,
        answered=score.answered,
        run=recorded_run(score.answers),
    )
    write_json(path, asdict(record), indent=1)


def read_score_file(path: str) -> ScoreFile:
    """Read a score file.

    Raises:
        OSError: the file cannot be read.
        RequestError: the file is not a score file.
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
