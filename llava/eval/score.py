"""Score answers to a benchmark: python -m llava.eval.score NAME --help lists the flags of each."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Sequence

from llava.eval.judging import mmvet
from llava.eval.scoring import gqa, hallusionbench, mmbench, mme, mmmu, pope, science_qa, seed, textvqa, vqa
from llava.eval.scoring.scorer import Benchmark, run_scorer
from llava.program import RequestError, run_program

_MODULES = (gqa, hallusionbench, mmbench, mme, mmmu, mmvet, pope, science_qa, seed, textvqa, vqa)
BENCHMARKS: dict[str, Benchmark] = {module.__name__.rpartition(".")[2]: module.BENCHMARK for module in _MODULES}


def overview() -> str:
    """Return the list of benchmarks, one line each."""
    lines = [f"  {name:<15} {benchmark.description.splitlines()[0]}" for name, benchmark in BENCHMARKS.items()]
    return "\n".join(["usage: python -m llava.eval.score NAME [flags]", "", *lines, "", "NAME --help lists its flags."])


def main(argv: Sequence[str]) -> None:
    """Score the benchmark that the first argument names; without arguments, list the benchmarks.

    Raises:
        RequestError: unknown benchmark, or unusable input.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
    elif argv[0] in BENCHMARKS:
        run_scorer(BENCHMARKS[argv[0]], argv[1:], program=f"python -m llava.eval.score {argv[0]}")
    else:
        raise RequestError(f"unknown benchmark {argv[0]!r}; choose one of {', '.join(BENCHMARKS)}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
