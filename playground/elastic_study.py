"""Compare one elastic AcFormer with AcFormers trained at each budget alone: `python -m playground.elastic_study`.

The elastic checkpoint is trained with `--mm_elastic_budgets` and opened at every budget, also at some that it was not
trained with. Beside it stand one checkpoint per budget, opened at its own, and the checkpoint of the protocol's number
of visual tokens, opened at every budget. All have the same data, steps, batches, learning rates and seeds; a second
elastic checkpoint has more steps and is named as such. What is finished is skipped when the command is repeated.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .files import write_json
from .make_data import make_data
from .study.elastic_report import RAW_RESULTS, write_report
from .study.obtain import obtain_all
from .study.options import add_options, folders_of, protocol_of
from .study.programs import run_study
from .study.protocol import Evaluation, Folders, Protocol, Run, finished_result

CONNECTOR = "acformer"
BUDGETS = (5, 9, 17, 33, 65)  # the class token and 1, 2, 4, 8, 16 patches for each of the tower's 4 heads
UNSEEN = (25, 49)


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        budgets: numbers of visual tokens to train with.
        unseen: further numbers, to evaluate only.
        fixed: the number of the checkpoint that is opened at every budget without having been trained for it.
        step_factor: of the longer elastic training; 1: there is none.

    Raises:
        ValueError: `fixed` is not one of `budgets`.
    """

    budgets: tuple[int, ...] = BUDGETS
    unseen: tuple[int, ...] = UNSEEN
    fixed: int = 17
    step_factor: int = 2

    def __post_init__(self) -> None:
        if self.fixed not in self.budgets:
            raise ValueError(f"--tokens {self.fixed} must be one of --budgets {' '.join(map(str, self.budgets))}")

    def curves(self, seed: int) -> dict[str, dict[int, Evaluation]]:
        """The evaluation of every budget, by curve: `elastic`, `alone`, `fixed` and `elastic_longer`."""
        curves = {
            "elastic": self._at_every_budget(Run(CONNECTOR, seed, budgets=self.budgets), "elastic"),
            "alone": {tokens: Evaluation(Run(CONNECTOR, seed, tokens)) for tokens in self.budgets},
            "fixed": self._at_every_budget(Run(CONNECTOR, seed, self.fixed), "fixed"),
        }
        if self.step_factor > 1:
            longer = Run(CONNECTOR, seed, budgets=self.budgets, step_factor=self.step_factor)
            curves["elastic_longer"] = self._at_every_budget(longer, "elastic")
        return curves

    def _at_every_budget(self, run: Run, table: str) -> dict[int, Evaluation]:
        """A checkpoint at the budget of its own training is the entry of `alone`: it is not evaluated twice."""
        return {
            tokens: Evaluation(run) if tokens == run.tokens else Evaluation(run, table, tokens=tokens)
            for tokens in sorted({*self.budgets, *self.unseen})
        }


def plan(study: Study, seeds: Sequence[int]) -> Iterator[tuple[str, list[Evaluation]]]:
    """(title, evaluations) in the order to be made; each list's trainings are finished before the next list.

    Seed by seed, so that a page with few seeds is complete early, and equal steps before the longer training.
    """
    for seed in seeds:
        curves = study.curves(seed)
        longer = list(curves.pop("elastic_longer", {}).values())
        first = [next(iter(curves["elastic"].values())), *curves["alone"].values()]
        rest = [e for curve in curves.values() for e in curve.values() if e not in first]
        yield f"Training runs of equal steps, seed {seed}", first
        yield f"The trained models at other budgets, seed {seed}", rest
        if longer:
            yield f"The longer elastic training, seed {seed}", longer[:1]
            yield f"The longer elastic training at other budgets, seed {seed}", longer[1:]


def gather(study: Study, seeds: Sequence[int], protocol: Protocol, folders: Folders, command: str) -> dict[str, Any]:
    """All data of the report, as written to `elastic.json`; missing results are left out."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name, by_budget in study.curves(seed).items():
            results = [finished_result(evaluation, protocol, folders) for evaluation in by_budget.values()]
            curves.setdefault(name, []).extend(result for result in results if result is not None)
    return {
        "command": command,
        "protocol": vars(protocol),
        "study": vars(study),
        "seeds": list(seeds),
        "curves": curves,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m playground.elastic_study", description=__doc__.split("\n")[0])
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="to train with")
    parser.add_argument("--unseen", nargs="*", type=int, default=list(UNSEEN), help="further budgets to evaluate")
    parser.add_argument("--step-factor", type=int, default=2, help="of the longer elastic training; 1: without it")
    add_options(parser, runs="checkpoints/elastic_study", seeds=[1])
    return parser


def shell_command(argv: Sequence[str]) -> str:
    """The command without the folders and the number of processes, which do not change the results."""
    args = argparse.ArgumentParser(add_help=False)
    for flag in ("--data", "--runs", "--out", "--jobs"):
        args.add_argument(flag)
    return shlex.join(["python", "-m", "playground.elastic_study", *args.parse_known_args(argv)[1]])


def main(argv: list[str] | None = None) -> int:
    """-> exit status: 0, 1 if something failed, 130 after ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    protocol, folders = protocol_of(args), folders_of(args)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the jobs

    def work() -> list[str]:
        failed: list[str] = []
        study = Study(tuple(args.budgets), tuple(args.unseen), protocol.tokens, args.step_factor)
        make_data(folders.data, protocol.pictures, protocol.questions, protocol.turns, protocol.data_seed)
        for title, evaluations in plan(study, args.seeds):
            failed += obtain_all(title, evaluations, protocol, folders, args.jobs)
            args.out.mkdir(parents=True, exist_ok=True)
            write_json(args.out / RAW_RESULTS, gather(study, args.seeds, protocol, folders, shell_command(argv)))
            write_report(args.out)
            if failed:
                break
        return failed

    return run_study(work, args.out / "elastic.md", folders)


if __name__ == "__main__":
    sys.exit(main())
