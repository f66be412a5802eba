"""Make the report of the connector comparison from its raw results: `python -m playground.study.report`.

Reads `connectors.json`, writes `connectors.md`, `connectors.png` and `elastic.png` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from llava.eval.reporting.published import ABLATION_7B, BENCHMARKS

from ..files import write_bytes
from .plots import draw_comparison, draw_elastic
from .programs import read_raw_results, run_report
from .tables import (
    KINDS,
    Result,
    Rows,
    cell,
    evaluation_row,
    facts,
    origin_rows,
    sampling_error,
    scores,
    spread,
    table,
    training_rows,
)

RAW_RESULTS = "connectors.json"


def of_table(raw: Result, name: str, connector: str | None = None) -> list[Result]:
    """The results of one part of the report, in the order of the seeds."""
    chosen = [r for r in raw["results"] if r["table"] == name and connector in (None, r["connector"])]
    return sorted(chosen, key=lambda result: result["seed"])


def missing_runs(raw: Result) -> list[str]:
    """Connectors and seeds that were asked for and have no result."""
    there = {(result["connector"], result["seed"]) for result in of_table(raw, "trained")}
    wanted = [(connector, seed) for connector in raw["connectors"] for seed in raw["seeds"]]
    return [f"{connector} seed {seed}" for connector, seed in wanted if (connector, seed) not in there]


def tokens_of(results: Sequence[Result]) -> str:
    return " / ".join(str(tokens) for tokens in sorted({result["visual_tokens"] for result in results}))


# ---- the parts of the page


def protocol_part(raw: Result) -> str:
    times = raw["step_times"] or {}
    rows = [
        *training_rows(raw["protocol"], raw["seeds"]),
        *generator_rows(raw),
        evaluation_row(raw["protocol"]),
        ["step time", step_time_protocol(times)],
        *origin_rows(raw["results"], raw["command"], {times["commit"]} if times else set()),
    ]
    head = "Equal for every connector: data, steps, batches, learning rates, seeds. Raw results: `connectors.json`."
    return f"{head}\n\n{facts(rows)}"


def generator_rows(raw: Result) -> Rows:
    """The sizes of VLoRA's generator, for connectors that have one."""
    settings = raw.get("own_settings", {})
    if not settings:
        return []
    flags = " ".join(f"--{name} {value}" for name, value in next(iter(settings.values())).items())
    return [["generator", f"`{flags}` ({', '.join(settings)})"]]


def step_time_protocol(times: Result) -> str:
    if not times:
        return "not measured"
    return (
        f"forward and backward of the whole model on the same images, {times['threads']} thread(s), median ratio "
        f"over {times['rounds']} rounds, all connectors in turn in one process ({times['date']}; {times['machine']})"
    )


def main_part(raw: Result) -> str:
    baseline = (raw["step_times"] or {}).get("baseline", "the first")
    header = ["connector", "visual tokens", *KINDS, f"step 1 vs {baseline}", f"step 2 vs {baseline}"]
    rows = []
    for connector in raw["connectors"]:
        results = of_table(raw, "trained", connector)
        if results:
            accuracies = [cell(scores(results, kind)) for kind in KINDS]
            times = [step_ratio(raw, stage, connector) for stage in ("stage1", "stage2")]
            rows.append([connector, tokens_of(results), *accuracies, *(f"{t:.2f}" if t else "–" for t in times)])
    blank = of_table(raw, "blank")
    if blank:
        rows.append(["a blank image", "", *(cell(scores(blank, kind)) for kind in KINDS), "", ""])
    error = sampling_error(of_table(raw, "trained"), raw["protocol"])
    notes = (
        "Percent right: mean ± standard deviation over the seeds. The deviation is that of training; all connectors "
        f"get the same questions, whose own sampling error is about {error:.1f} points of the mean. A step time below "
        "1 is faster; text is most of the sequence here, so step times differ less than with 576 patches. Training is "
        "short: the table shows how fast a connector learns as well as what it can carry."
    )
    missing = missing_runs(raw)
    if missing:
        notes += f"\n\n**Missing: {', '.join(missing)}.**"
    return f"{table(header, rows)}\n\n{notes}\n\n![Accuracy against visual tokens and step time](connectors.png)"


def step_ratio(raw: Result, stage: str, connector: str) -> float | None:
    """Step time relative to the baseline's; None if it was not measured."""
    return ((raw["step_times"] or {}).get("stages", {}).get(stage, {}).get(connector) or {}).get("ratio")


def elastic_part(raw: Result) -> str:
    results = of_table(raw, "elastic")
    budgets = sorted({result["visual_tokens"] for result in results})
    rows = []
    for budget in budgets:
        at_budget = [result for result in results if result["visual_tokens"] == budget]
        trained = {r["visual_tokens"] for r in of_table(raw, "trained", at_budget[0]["trained_as"])}
        name = f"{budget} (trained)" if budget in trained else str(budget)
        rows.append([name, *(cell(scores(at_budget, kind)) for kind in KINDS)])
    text = (
        "One trained AcFormer checkpoint per seed, opened with `mm_num_visual_tokens` set to other budgets, "
        "without any further training."
    )
    return f"{text}\n\n{table(['visual tokens', *KINDS], rows)}\n\n![Accuracy against budget](elastic.png)"


def training_free_part(raw: Result) -> str:
    results = of_table(raw, "training_free")
    source = results[0]["trained_as"]
    rows = []
    for connector in dict.fromkeys(result["connector"] for result in results):
        own = [result for result in results if result["connector"] == connector]
        rows.append([f"{connector} (training-free)", tokens_of(own), *(cell(scores(own, kind)) for kind in KINDS)])
    trained = of_table(raw, "trained", source)
    if trained:
        rows.insert(0, [f"{source} as trained", tokens_of(trained), *(cell(scores(trained, k)) for k in KINDS)])
    text = f"The {source} checkpoints, opened with `mm_projector_type` set to another connector: nothing is trained."
    return f"{text}\n\n{table(['connector', 'visual tokens', *KINDS], rows)}"


def published_part() -> str:
    budgets = sorted({budget for by_budget in ABLATION_7B.values() for budget in by_budget})
    rows = [
        [name, *(" / ".join(f"{s:.1f}" for s in by_budget[b]) if b in by_budget else "–" for b in budgets)]
        for name, by_budget in ABLATION_7B.items()
    ]
    text = (
        f"**Published, not measured here, and from another harness:** {' / '.join(BENCHMARKS)} of the AcFormer paper's "
        "ablation (arXiv 2405.17815; 7B language model, CLIP ViT-L/14-336). `evit` has one token more than the column "
        "says, `c_abstractor`'s published code one less."
    )
    return f"{text}\n\n{table(['connector', *(f'{budget} tokens' for budget in budgets)], rows)}"


def page(raw: Result) -> str:
    """The whole report as Markdown."""
    parts = ["# Connectors compared on the playground", "## Protocol", protocol_part(raw), "## Trained", main_part(raw)]
    if of_table(raw, "elastic"):
        parts += ["## Elastic budget", elastic_part(raw)]
    if of_table(raw, "training_free"):
        parts += ["## Training-free use", training_free_part(raw)]
    parts += ["## Published figures", published_part()]
    parts.append("Made by `python -m playground.study.report` from `connectors.json`.")
    return "\n\n".join(parts) + "\n"


def plot_points(raw: Result) -> list[dict[str, Any]]:
    """The points of the comparison's plot, one per trained connector."""
    points = []
    for connector in raw["connectors"]:
        results = of_table(raw, "trained", connector)
        if results:
            average, deviation = spread(scores(results))
            points.append(
                {
                    "name": connector,
                    "tokens": results[0]["visual_tokens"],
                    "time": step_ratio(raw, "stage2", connector),
                    "accuracy": average,
                    "deviation": deviation or 0.0,
                }
            )
    return points


def elastic_curve(raw: Result) -> list[tuple[int, float, float]]:
    """(visual tokens, mean accuracy, standard deviation) of the elastic part, ascending."""
    results = of_table(raw, "elastic")
    curve = []
    for budget in sorted({result["visual_tokens"] for result in results}):
        average, deviation = spread(scores(r for r in results if r["visual_tokens"] == budget))
        curve.append((budget, average, deviation or 0.0))
    return curve


def write_report(folder: Path) -> None:
    """
    Raises:
        ValueError: there are no raw results.
        ImportError: matplotlib is missing; names the extra.
    """
    path = folder / RAW_RESULTS
    raw = read_raw_results(path, "scripts/v1_5/connector_table.sh")
    if not of_table(raw, "trained"):
        raise ValueError(f"{path} holds no finished run: there is nothing to report")
    baseline = (raw["step_times"] or {}).get("baseline", "the first")
    write_bytes(folder / "connectors.md", page(raw).encode())
    write_bytes(folder / "connectors.png", draw_comparison(plot_points(raw), baseline))
    if curve := elastic_curve(raw):
        lines = {name: mean(scores(found)) for name, found in reference_lines(raw).items() if found}
        trained_at = {result["visual_tokens"] for result in of_table(raw, "trained", "acformer")}
        write_bytes(folder / "elastic.png", draw_elastic(curve, trained_at, lines))


def reference_lines(raw: Result) -> dict[str, list[Result]]:
    """Reference lines of the elastic curve: the trained MLP with all patches, and a blank image."""
    mlp = of_table(raw, "trained", "mlp2x_gelu")
    return {f"mlp2x_gelu, {tokens_of(mlp)} tokens": mlp, "a blank image": of_table(raw, "blank")}


def main(argv: list[str] | None = None) -> int:
    return run_report("playground.study.report", __doc__, RAW_RESULTS, "connectors.md", write_report, argv)


if __name__ == "__main__":
    sys.exit(main())
