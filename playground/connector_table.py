"""Train and evaluate every connector on the playground under equal conditions: `python -m playground.connector_table`.

Usually started by `bash scripts/v1_5/connector_table.sh`. Every connector is trained with every seed; then come further
questions to the finished models (budgets of AcFormer that it was not trained with, training-free connectors on the MLP
checkpoint, blank images), the step times, and the report. What is finished is skipped when the command is repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from .files import write_json
from .make_data import make_data
from .study.jobs import Finished, Job, Waiting, run_jobs, state, tail
from .study.obtain import PRELOADED, Progress, obtain_all
from .study.options import add_options, folders_of, protocol_of
from .study.programs import run_study
from .study.protocol import OWN_SETTINGS, Evaluation, Folders, Protocol, Run, finished_result, read_json
from .study.report import RAW_RESULTS, write_report
from .study.step_time import STEP_TIMES, measure_step_times

BASELINE = "mlp2x_gelu"
ELASTIC = "acformer"
CONNECTORS = (
    BASELINE,
    ELASTIC,
    "perceiver",
    "pooling",
    "pooling_pr",
    "random_pr",
    "c_abstractor",
    "top_p",
    "evit",
    "pixel_shuffle",
    "visionzip",
    "vlora",
    "acformer_vlora",
)
ELASTIC_BUDGETS = (5, 9, 17, 33, 65)  # the class token and 1, 2, 4, 8, 16 patches for each of the tower's 4 heads
TRAINING_FREE = ("pooling", "top_p", "evit", "visionzip")


def plan_trainings(connectors: Sequence[str], seeds: Sequence[int]) -> list[Evaluation]:
    """Seed by seed, so that a table with few seeds is complete early."""
    return [Evaluation(Run(connector, seed)) for seed in seeds for connector in connectors]


def plan_further_questions(connectors: Sequence[str], seeds: Sequence[int], tokens: int) -> list[Evaluation]:
    """Further evaluations of trained models: other budgets, training-free connectors, blank images as a lower bound."""
    plan: list[Evaluation] = []
    for seed in seeds:
        if ELASTIC in connectors:
            plan += [Evaluation(Run(ELASTIC, seed), "elastic", tokens=budget) for budget in ELASTIC_BUDGETS]
        if BASELINE in connectors:
            plan += [Evaluation(Run(BASELINE, seed), "training_free", name, tokens) for name in TRAINING_FREE]
            plan.append(Evaluation(Run(BASELINE, seed), "blank"))
    return plan


def obtain_step_times(connectors: Sequence[str], seed: int, protocol: Protocol, folders: Folders) -> list[str]:
    """Measure step times last, with nothing else running, on the models of one seed. -> what failed."""
    runs = [Run(name, seed) for name in connectors]
    runs = [run for run in runs if finished_result(Evaluation(run), protocol, folders) is not None]
    if not runs:
        return []
    progress = Progress("Step times, all connectors in turn in one process", 1, 0, 1)
    log = folders.runs / "logs" / "step-times.log"
    job = Job("step times", measure_step_times, (runs, protocol, folders), log)
    for event in run_jobs([job], 1, PRELOADED):
        if isinstance(event, Waiting):
            progress.say(f"running: {state(log)}")
        if isinstance(event, Finished) and event.exit_code != 0:
            progress.say(f"step times FAILED; the end of {log}:\n{tail(log)}")
            return [job.name]
    return []


def gather(
    connectors: Sequence[str], seeds: Sequence[int], protocol: Protocol, folders: Folders, command: str
) -> dict[str, Any]:
    """All data of the report, as written to `connectors.json`; missing results are left out."""
    plan = [*plan_trainings(connectors, seeds), *plan_further_questions(connectors, seeds, protocol.tokens)]
    results = [finished_result(evaluation, protocol, folders) for evaluation in plan]
    return {
        "command": command,
        "protocol": vars(protocol),
        "connectors": list(connectors),
        "own_settings": {name: OWN_SETTINGS[name] for name in connectors if name in OWN_SETTINGS},
        "seeds": list(seeds),
        "step_times": read_json(folders.runs / STEP_TIMES),
        "results": [result for result in results if result is not None],
    }


def shell_command(args: argparse.Namespace) -> str:
    """The `connector_table.sh` command for these settings."""
    settings = {
        "CONNECTORS": " ".join(args.connectors),
        "SEEDS": " ".join(map(str, args.seeds)),
        "TOKENS": args.tokens,
        "STAGE1_STEPS": args.stage1_steps,
        "STAGE2_STEPS": args.stage2_steps,
        "PICTURES": args.pictures,
        "QUESTIONS": args.questions,
    }
    if tuple(args.connectors) == CONNECTORS:
        del settings["CONNECTORS"]
    quoted = {name: f'"{value}"' if " " in str(value) else value for name, value in settings.items()}
    return " ".join([*(f"{name}={value}" for name, value in quoted.items()), "bash scripts/v1_5/connector_table.sh"])


def check_connectors(connectors: Sequence[str]) -> None:
    """Check the names before anything is trained.

    Raises:
        ValueError: a name is not registered; lists the known names.
    """
    from llava.model.multimodal_projector.builder import find_connector

    for name in connectors:
        find_connector(name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m playground.connector_table", description=__doc__.split("\n")[0])
    parser.add_argument("--connectors", nargs="+", default=list(CONNECTORS))
    add_options(parser, runs="checkpoints/connector_table", seeds=[1, 2, 3])
    return parser


def main(argv: list[str] | None = None) -> int:
    """-> exit status: 0, 1 if something failed, 130 after ctrl-C."""
    args = build_parser().parse_args(argv)
    protocol, folders = protocol_of(args), folders_of(args)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the jobs

    def work() -> list[str]:
        check_connectors(args.connectors)
        make_data(folders.data, protocol.pictures, protocol.questions, protocol.turns, protocol.data_seed)
        failed = obtain_all("Training runs", plan_trainings(args.connectors, args.seeds), protocol, folders, args.jobs)
        further = plan_further_questions(args.connectors, args.seeds, protocol.tokens)
        further = [e for e in further if e.run.name not in failed]
        failed += obtain_all("Further questions to the trained models", further, protocol, folders, args.jobs)
        failed += obtain_step_times(args.connectors, args.seeds[0], protocol, folders)
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / RAW_RESULTS, gather(args.connectors, args.seeds, protocol, folders, shell_command(args)))
        write_report(args.out)
        return failed

    return run_study(work, args.out / "connectors.md", folders)


if __name__ == "__main__":
    sys.exit(main())
