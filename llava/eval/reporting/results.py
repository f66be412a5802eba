"""The results of a report: score files by experiment and benchmark, with intervals, visual tokens and speeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.scoring.metrics import compute, interval
from llava.eval.scoring.mme import PERCEPTION
from llava.eval.scoring.score_file import ScoreFile, read_score_file
from llava.program import RequestError


@dataclass(frozen=True)
class Result:
    """A score with its 95 % confidence interval, and its score file."""

    score: float
    interval: tuple[float, float]
    source: ScoreFile


# experiment -> benchmark -> result
Results = Mapping[str, Mapping[str, Result]]


def find_score_files(places: Sequence[str]) -> list[Path]:
    """Return the score files among `places` and in their folders named `scores`.

    Raises:
        RequestError: a place does not exist, or holds no score file.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise RequestError(f"{place} does not exist; give score files, or folders of the evaluation's data")
        files = sorted(place.glob("**/scores/*.json")) if place.is_dir() else [place]
        if place.is_dir() and place.name == "scores":
            files += sorted(place.glob("*.json"))
        if not files:
            raise RequestError(
                f"{place} holds no score files (scores/*.json); the scorers write them with --score-file, as the "
                "scripts of scripts/v1_5/eval do"
            )
        found += files
    return list(dict.fromkeys(found))


def gather(paths: Sequence[Path], samples: int) -> dict[str, dict[str, Result]]:
    """Read score files; return experiment -> benchmark -> result. MME also gives MME-P, perception alone.

    Raises:
        RequestError: a file is no score file, or two belong to the same experiment and benchmark.
    """
    results: dict[str, dict[str, Result]] = {}
    origin: dict[tuple[str, str], Path] = {}
    for path in paths:
        source = read_score_file(str(path))
        key = (source.experiment, source.benchmark)
        if key in origin:
            raise RequestError(f"{origin[key]} and {path} both hold {key[1]} of {key[0]}; leave one of them out")
        origin[key] = path
        parts = {source.benchmark: source.items}
        perception = [item for item in source.items if item["group"] in PERCEPTION]
        if source.benchmark == "MME" and perception:
            parts["MME-P"] = perception
        for name, items in parts.items():
            try:
                result = Result(compute(source.metric, items), interval(source.metric, items, samples), source)
            except RequestError as error:
                raise RequestError(f"{path}: {error}") from error
            results.setdefault(source.experiment, {})[name] = result
    return results


def tokens_of(by_benchmark: Mapping[str, Result]) -> int | None:
    """Return the visual tokens per image or crop of an experiment; None if they are not recorded, or differ."""
    stated = {repr(result.source.run.get("num_visual_tokens")) for result in by_benchmark.values()} - {"None"}
    return int(next(iter(stated))) if len(stated) == 1 and next(iter(stated)).isdigit() else None


def speed_of(by_benchmark: Mapping[str, Result], baseline: Mapping[str, Result]) -> float | None:
    """Return the answers per second relative to the baseline; None if nothing is comparable.

    It is the geometric mean over the benchmarks that both have timed with the same device, precision and batch size.
    """
    ratios = [
        theirs / ours
        for name, result in by_benchmark.items()
        if name != "MME-P" and name in baseline
        if _same_conditions(result, baseline[name])
        if (ours := _seconds(result)) and (theirs := _seconds(baseline[name]))
    ]
    return statistics.geometric_mean(ratios) if ratios else None


def _same_conditions(one: Result, other: Result) -> bool:
    return all(one.source.run.get(field) == other.source.run.get(field) for field in ("device", "dtype", "batch_size"))


def _seconds(result: Result) -> float | None:
    """Return the seconds per answer; None if they are not recorded, or too short for the clock."""
    seconds = result.source.run.get("seconds")
    return seconds if isinstance(seconds, int | float) and seconds > 0 else None


def choose_baseline(results: Results, wanted: str | None) -> str:
    """Return the baseline of speeds: the wanted experiment, else the first with LLaVA-1.5's MLP, else the first.

    Raises:
        RequestError: there is no such experiment.
    """
    if wanted is not None and wanted not in results:
        raise RequestError(f"--baseline {wanted}: no such experiment; there are {', '.join(results)}")

    def has_mlp(name: str) -> bool:
        return any("mlp" in str(result.source.run.get("connector")) for result in results[name].values())

    return wanted or next((name for name in results if has_mlp(name)), next(iter(results)))
