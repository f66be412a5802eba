"""Make the report of the elastic study from its raw results: `python -m playground.study.elastic_report`.

Reads `elastic.json`, writes `elastic.md` and `elastic_training.png` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from ..files import write_bytes
from ..world.language import CATEGORIES
from .plots import draw_curves
from .programs import read_raw_results, run_report
from .tables import (
    KINDS,
    Result,
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

RAW_RESULTS = "elastic.json"
SUDDEN = "word"  # a kind of question that a training either learns or answers at chance


def wanted_curves(raw: Result) -> dict[str, str]:
    """Key of a curve -> its name in the report."""
    study = raw["study"]
    names = {
        "elastic": "elastic",
        "alone": "trained at this budget alone",
        "fixed": f"trained at {study['fixed']} only",
    }
    if study["step_factor"] > 1:
        names["elastic_longer"] = f"elastic, {study['step_factor']} x the steps"
    return names


def curve_names(raw: Result) -> dict[str, str]:
    """The curves that have results."""
    return {key: name for key, name in wanted_curves(raw).items() if raw["curves"].get(key)}


def at_budget(raw: Result, curve: str, budget: int) -> list[Result]:
    """The results of one curve at one budget, in the order of the seeds."""
    chosen = [result for result in raw["curves"].get(curve, []) if result["visual_tokens"] == budget]
    return sorted(chosen, key=lambda result: result["seed"])


def all_budgets(raw: Result) -> list[int]:
    return sorted({result["visual_tokens"] for curve in raw["curves"].values() for result in curve})


def budget_name(raw: Result, budget: int) -> str:
    return str(budget) if budget in raw["study"]["budgets"] else f"{budget} (not in the elastic training)"


def gaps(raw: Result, curve: str, kinds: Sequence[str] = CATEGORIES) -> dict[int, float]:
    """Budget -> points of `curve` above (+) or below (-) the training at that budget alone, mean over the question
    `kinds` and over the seeds that both have."""
    found = {}
    for budget in all_budgets(raw):
        own, alone = (
            {
                result["seed"]: mean(result["accuracy"][kind] for kind in kinds)
                for result in at_budget(raw, name, budget)
            }
            for name in (curve, "alone")
        )
        if common := alone.keys() & own.keys():
            found[budget] = mean(own[seed] - alone[seed] for seed in common)
    return found


# ---- the parts of the page


def curves_part(raw: Result) -> str:
    names = curve_names(raw)
    rows = [
        [budget_name(raw, budget), *(cell(scores(at_budget(raw, curve, budget))) for curve in names)]
        for budget in all_budgets(raw)
    ]
    return table(["visual tokens", *names.values()], rows)


def findings(raw: Result) -> str:
    """The distance of every curve from the trainings at each budget alone, and the noise to compare it with."""
    every = [result for curve in raw["curves"].values() for result in curve]
    noise = 2**0.5 * sampling_error(every, raw["protocol"])
    noise_without = noise * (len(CATEGORIES) / (len(CATEGORIES) - 1)) ** 0.5  # fewer questions
    lines = []
    for curve, name in curve_names(raw).items():
        if curve != "alone" and (gap := gaps(raw, curve)):
            without = gaps(raw, curve, [kind for kind in CATEGORIES if kind != SUDDEN])
            lines.append(
                f"- **{name}**: {in_words(gap)}. {verdict(gap, noise)}\n"
                f"  Without `{SUDDEN}`: {in_words(without)}. {verdict(without, noise_without)}"
            )
    count = len(raw["seeds"])
    seeds = f"{count} seeds" if count > 1 else "one seed here, so its size is not measured"
    return (
        "Points above (+) or below (-) the checkpoint that was trained at that budget alone:\n\n"
        + "\n".join(lines or ["- not measured yet"])
        + "\n\nThe questions are the same for all. Their finite number gives a difference of two checkpoints a "
        f"standard error of up to about {noise:.1f} points; the chance of training comes on top ({seeds}). Reading the "
        f"`{SUDDEN}` in an image is learned suddenly: a training either reaches that point within these steps or "
        "answers at chance, which moves the mean by up to a sixth of 100 points. Hence the figures without it."
    )


def in_words(gap: dict[int, float]) -> str:
    listed = ", ".join(f"{value:+.1f} at {budget}" for budget, value in gap.items())
    return f"{listed}; mean {mean(gap.values()):+.1f}"


def verdict(gap: dict[int, float], noise: float) -> str:
    """Whether no budget falls short by more than two standard errors."""
    short = [str(budget) for budget, value in gap.items() if value < -2 * noise]
    if short:
        return f"Falls short by more than two standard errors at {', '.join(short)}."
    return "No budget falls short by more than two standard errors."


def kinds_part(raw: Result) -> str:
    """One table per curve: the accuracy of every kind of question."""
    parts = []
    for curve, name in curve_names(raw).items():
        budgets = [budget for budget in all_budgets(raw) if at_budget(raw, curve, budget)]
        rows = [[str(b), *(cell(scores(at_budget(raw, curve, b), kind)) for kind in KINDS)] for b in budgets]
        parts.append(f"### {name[0].upper()}{name[1:]}\n\n{table(['visual tokens', *KINDS], rows)}")
    return "\n\n".join(parts)


def cost_part(raw: Result) -> str:
    """Training steps of what each column needs to serve every budget."""
    steps = raw["protocol"]["stage1_steps"], raw["protocol"]["stage2_steps"]
    study = raw["study"]
    times = {"elastic": 1, "alone": len(study["budgets"]), "fixed": 1, "elastic_longer": study["step_factor"]}
    rows = [
        [name, "1" if curve != "alone" else str(times[curve]), *(str(count * times[curve]) for count in steps)]
        for curve, name in curve_names(raw).items()
    ]
    text = (
        "At equal steps, an elastic checkpoint spends on each budget "
        f"1/{len(study['budgets'])} of the steps that a checkpoint of one budget spends on its own."
    )
    if raw["curves"].get("elastic_longer"):
        samples = steps[1] * raw["protocol"]["stage2_batch"]
        longer = samples * study["step_factor"]
        text += f" Stage 2 takes {samples} samples at equal steps and {longer} in the longer training."
    return f"{table(['to serve every budget', 'checkpoints', 'steps of stage 1', 'steps of stage 2'], rows)}\n\n{text}"


def missing_part(raw: Result) -> str:
    """The budgets and seeds that were asked for and have no result; empty if there are none."""
    study, missing = raw["study"], []
    for curve, name in wanted_curves(raw).items():
        if not raw["curves"].get(curve):
            missing.append(name)
            continue
        wanted = study["budgets"] if curve == "alone" else [*study["budgets"], *study["unseen"]]
        for budget in wanted:
            there = {result["seed"] for result in at_budget(raw, curve, budget)}
            missing += [f"{name} at {budget}, seed {seed}" for seed in raw["seeds"] if seed not in there]
    return f"**Missing: {'; '.join(missing)}.**" if missing else ""


def page(raw: Result) -> str:
    """The whole report as Markdown."""
    results = [result for curve in raw["curves"].values() for result in curve]
    study = raw["study"]
    protocol = [
        *training_rows(raw["protocol"], raw["seeds"]),
        ["elastic training", f"`--mm_elastic_budgets {','.join(map(str, study['budgets']))}` in both stages: "
                             "one number is drawn for every optimizer step"],
        evaluation_row(raw["protocol"]),
        *origin_rows(results, raw["command"]),
    ]  # fmt: skip
    parts = [
        "# Elastic training on the playground",
        "One AcFormer trained with many budgets of visual tokens, against AcFormers trained with one budget each. "
        "Equal for all: data, batches, learning rates, seeds and steps, unless a column says otherwise. The checkpoint "
        f"that was trained at {study['fixed']} only is opened at the other budgets without further training. "
        "Raw results: `elastic.json`.",
        "## Accuracy against the budget",
        curves_part(raw),
        "Percent right, mean over the six kinds of questions"
        + (": mean ± standard deviation over the seeds." if len(raw["seeds"]) > 1 else "; one seed."),
        missing_part(raw),
        "![Accuracy against budget](elastic_training.png)",
        findings(raw),
        "## Cost",
        cost_part(raw),
        "## Kinds of questions",
        kinds_part(raw),
        "## Protocol",
        facts(protocol),
        "Made by `python -m playground.study.elastic_report` from `elastic.json`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot_curve(raw: Result, curve: str) -> list[tuple[int, float, float]]:
    """(visual tokens, mean accuracy, standard deviation), ascending."""
    points = []
    for budget in all_budgets(raw):
        if found := at_budget(raw, curve, budget):
            average, deviation = spread(scores(found))
            points.append((budget, average, deviation or 0.0))
    return points


def write_report(folder: Path) -> None:
    """
    Raises:
        ValueError: there are no raw results.
        ImportError: matplotlib is missing; names the extra.
    """
    path = folder / RAW_RESULTS
    raw = read_raw_results(path, "python -m playground.elastic_study")
    if not curve_names(raw):
        raise ValueError(f"{path} holds no finished run: there is nothing to report")
    write_bytes(folder / "elastic.md", page(raw).encode())
    curves = {name: plot_curve(raw, curve) for curve, name in curve_names(raw).items()}
    write_bytes(folder / "elastic_training.png", draw_curves(curves))


def main(argv: Sequence[str] | None = None) -> int:
    return run_report("playground.study.elastic_report", __doc__, RAW_RESULTS, "elastic.md", write_report, argv)


if __name__ == "__main__":
    sys.exit(main())
