"""Write held-out scenes in the benchmarks' own files: `python -m playground.make_benchmarks [--out DIR] [--count N]`.

`DIR` then looks like upstream's `playground/data/eval`, so that every script of `scripts/v1_5/eval/` runs on it:
`EVAL=playground/data/shapes_eval MODEL=checkpoints/playground/llava-acformer bash scripts/v1_5/eval/pope.sh`. The
same arguments give the same bytes; a second run finds its own stamp and does nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from .files import write_json
from .tasks.choice_benchmarks import (
    write_llava_bench,
    write_mmbench,
    write_mmvet,
    write_qbench,
    write_scienceqa,
    write_seed,
)
from .tasks.word_benchmarks import write_gqa, write_mme, write_pope, write_textvqa, write_vizwiz, write_vqav2

FORMAT = 1  # raise when the files of the same arguments change
STAMP = "playground_stamp.json"

WRITERS: dict[str, Callable[[Path, random.Random, int], None]] = {
    "pope": write_pope,
    "MME": write_mme,
    "gqa": write_gqa,
    "vqav2": write_vqav2,
    "vizwiz": write_vizwiz,
    "textvqa": write_textvqa,
    "scienceqa": write_scienceqa,
    "mmbench/mmbench_dev_20230712.tsv": write_mmbench,
    "mmbench_cn/mmbench_dev_cn_20231003.tsv": write_mmbench,
    "seed_bench": write_seed,
    "mm-vet": write_mmvet,
    "llava-bench-in-the-wild": write_llava_bench,
    "qbench": write_qbench,
}


def make_benchmarks(out: Path, count: int, seed: int) -> bool:
    """Write all benchmarks below `out`; returns False if they were there already.

    Args:
        count: questions of each (of each category for POPE, images of each task for MME).

    Raises:
        ValueError: `count` is not positive, or the folder holds something else than what these arguments give.
    """
    if count < 1:
        raise ValueError("count must be at least 1")
    stamp = {"format": FORMAT, "count": count, "seed": seed}
    path = out / STAMP
    if path.exists():
        found = json.loads(path.read_text())
        if found == stamp:
            return False
        if found != {"unfinished": stamp}:  # answers to those questions may lie among them
            raise ValueError(f"{out} holds benchmarks of other arguments ({found}); remove it, or choose another --out")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files, perhaps the real benchmarks; choose a folder of its own with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"unfinished": stamp})
    for name, write in WRITERS.items():
        folder = out / name
        (folder.parent if folder.suffix else folder).mkdir(parents=True, exist_ok=True)
        write(folder, random.Random(f"{name} {seed}"), count)
    write_json(path, stamp)
    return True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m playground.make_benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("playground/data/shapes_eval"))
    parser.add_argument("--count", type=int, default=60, help="questions per benchmark, or per category of it")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    try:
        fresh = make_benchmarks(args.out, args.count, args.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{'wrote' if fresh else 'up to date:'} {args.out}\n")


if __name__ == "__main__":
    main()
