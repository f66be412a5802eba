"""Score answers to SEED-Bench and write the submission file: see llava.eval.scoring.seed."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from llava.eval.scoring.scorer import run_scorer
from llava.eval.scoring.seed import BENCHMARK
from llava.program import run_program

if __name__ == "__main__":
    run_program(lambda: run_scorer(BENCHMARK))
