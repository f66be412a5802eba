"""Score answers to POPE, as upstream's program of this name does: see llava.eval.scoring.pope."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from llava.eval.scoring.pope import BENCHMARK, eval_pope
from llava.eval.scoring.scorer import run_scorer
from llava.program import run_program

__all__ = ["eval_pope"]

if __name__ == "__main__":
    run_program(lambda: run_scorer(BENCHMARK))
