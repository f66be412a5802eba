"""Train and evaluate every connector on the playground under equal conditions: `python -m playground.connector_table`.

Usually started by `bash scripts/v1_5/connector_table.sh`. Every connector is trained with every seed; then come further
questions to the finished models (budgets of AcFormer that it was not trained with, training-free connectors on the MLP
checkpoint, blank images), the step times, and the report. What is finished is skipped when the command is repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import write_json
from .make_data import make_data
from .study.jobs import Finished, Job, Waiting, run_jobs, state, tail
from .study.protocol import (
    OWN_SETTINGS,
    Evaluation,
    Folders,
    Protocol,
    Run,
    changed_settings,
    finished_result,
    read_json,
)
from .study.report import RAW_RESULTS, write_report
from .study.runs import obtain_result
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
PRELOADED = ("llava.train.train", "llava.eval.model_vqa_loader", "deepspeed")


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


class Progress:
    """Report progress on standard output: jobs done, time elapsed and left, the last result."""

    def __init__(self, title: str, total: int, done: int, at_once: int) -> None:
        self.total, self.done, self.at_once = total, done, at_once
        self.seconds: list[float] = []
        self.started = time.monotonic()
        skipped = f", {done} of them done before" if done else ""
        self.say(f"{title}: {total}{skipped}, {at_once} at once")

    def say(self, text: str) -> None:
        sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
        sys.stdout.flush()

    def time_left(self) -> str:
        if not self.seconds:
            return "time left not known yet"
        mean = sum(self.seconds) / len(self.seconds)
        left = mean * (self.total - self.done) / self.at_once
        return f"about {left / 60:.0f} min left"

    def finished(self, job: Job, seconds: float, outcome: str) -> None:
        self.done += 1
        self.seconds.append(seconds)
        elapsed = (time.monotonic() - self.started) / 60
        self.say(f"{self.done}/{self.total} {job.name}: {outcome} ({seconds:.0f} s); {elapsed:.1f} min elapsed, "
                 f"{self.time_left()}")  # fmt: skip


def obtain_all(title: str, plan: Sequence[Evaluation], protocol: Protocol, folders: Folders, at_once: int) -> list[str]:
    """Obtain the missing results. -> names of those that failed."""
    missing = [e for e in plan if finished_result(e, protocol, folders) is None]
    progress = Progress(title, len(plan), len(plan) - len(missing), at_once)
    for evaluation in missing:
        if changes := changed_settings(evaluation, protocol, folders):
            progress.say(f"{evaluation.name} was made with other settings and is made again: {', '.join(changes)}")
    by_job = {
        Job(e.name, obtain_result, (e, protocol, folders), folders.runs / "logs" / f"{e.name}.log"): e for e in missing
    }
    if by_job:
        progress.say(f"log files: {folders.runs / 'logs'}")
    failed = []
    for event in run_jobs(list(by_job), at_once, PRELOADED):
        if isinstance(event, Waiting):
            progress.say("running: " + "; ".join(f"{job.name} {state(job.log)}" for job in event.jobs))
        elif isinstance(event, Finished):
            result = finished_result(by_job[event.job], protocol, folders)
            if event.exit_code == 0 and result is not None:
                progress.finished(event.job, event.seconds, f"{result['mean']:.1f} % right")
                continue
            failed.append(event.job.name)
            progress.finished(event.job, event.seconds, f"FAILED (exit status {event.exit_code})")
            progress.say(f"the end of {event.job.log}:\n{tail(event.job.log)}")
    return failed


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
    default = Protocol()
    parser = argparse.ArgumentParser(prog="python -m playground.connector_table", description=__doc__.split("\n")[0])
    parser.add_argument("--connectors", nargs="+", default=list(CONNECTORS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, default=default.tokens, help="asked of every connector that can choose")
    parser.add_argument("--stage1-steps", type=int, default=default.stage1_steps)
    parser.add_argument("--stage2-steps", type=int, default=default.stage2_steps)
    parser.add_argument("--pictures", type=int, default=default.pictures, help="for training")
    parser.add_argument("--questions", type=int, default=default.questions, help="held out, of each kind")
    parser.add_argument("--data", type=Path, default=Path("playground/data/connectors"))
    parser.add_argument("--runs", type=Path, default=Path("checkpoints/connector_table"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once, one thread each")
    return parser


def main(argv: list[str] | None = None) -> int:
    """-> exit status: 0, 1 if something failed, 130 after ctrl-C."""
    args = build_parser().parse_args(argv)
    protocol = Protocol(
        tokens=args.tokens,
        stage1_steps=args.stage1_steps,
        stage2_steps=args.stage2_steps,
        pictures=args.pictures,
        questions=args.questions,
    )
    folders = Folders(args.data.resolve(), args.runs.resolve())
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the jobs
    try:
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
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command resumes from the last finished stage\n")
        return 130
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if failed:
        sys.stderr.write(f"error: {len(failed)} failed: {', '.join(failed)}; the logs are in {folders.runs / 'logs'}\n")
    sys.stdout.write(f"report: {args.out / 'connectors.md'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
