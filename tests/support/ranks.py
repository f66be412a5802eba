"""A function on several ranks of a gloo group: forked processes, which start in milliseconds."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def run_on_ranks(count: int, folder: Path, function: Callable[[int], Any]) -> list[Any]:
    """What `function(rank)` gives or raises on each rank; `folder` is where the ranks meet."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()

    def work(rank: int) -> None:
        store = torch.distributed.FileStore(str(folder / "ranks"), count)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
        try:
            results.put((rank, function(rank)))
        except ValueError as error:
            results.put((rank, error))
        except BaseException:
            results.put((rank, traceback.format_exc()))

    workers = [context.Process(target=work, args=(rank,), daemon=True) for rank in range(count)]
    for worker in workers:
        worker.start()
    try:
        return [value for _, value in sorted((results.get(timeout=60) for _ in workers), key=lambda pair: pair[0])]
    finally:
        for worker in workers:
            worker.kill()
