"""Tests on the device, the loss, and padded against packed epochs in `gpu.py`."""

import argparse
import importlib.util
import os
import subprocess
import sys
from functools import partial
from typing import Any

import loss
import packing
from common import markdown_table, peak_bytes_above
from gpu_bench import Figures, Part, Run, gibibytes, median_seconds, milliseconds
from gpu_results import Item

from llava.tools.machine import REPOSITORY

TEST_FILE = "tests/unit/test_on_device.py"
LAYERS, RANKS = 4, 2  # of the packing part


def test_items(run: Run) -> list[Item]:
    return [Item("unit tests", partial(run_tests, run))]


def run_tests(run: Run) -> dict[str, Any]:
    """The unit tests that take a device, in a process of their own.

    Raises:
        ModuleNotFoundError: there is no pytest.
        RuntimeError: some failed.
    """
    if importlib.util.find_spec("pytest") is None:
        raise ModuleNotFoundError("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "--verbosity=0", "--no-header", "-p", "no:cacheprovider", "--tb=short"]
    if run.is_rehearsal:
        command += ["-k", "rank or uint8"]
    command.append(TEST_FILE)
    environment = os.environ | {"LLAVA_TEST_DEVICE": run.device}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    if done.returncode:
        print(done.stdout[-6000:])
        raise RuntimeError(lines[-1])
    return {"outcome": lines[-1].strip("= ")}


def test_report(run: Run, figures: Figures) -> str:
    return "\n".join(f"`{TEST_FILE}` on `{run.device}`: {f['outcome']}" for f in figures.values())


def loss_items(run: Run) -> list[Item]:
    sizes = [256] if run.is_rehearsal else [2048, 8192, 32768]
    ways = losses_of(run, 8)
    return [Item(f"{way}, {size}", partial(measure_loss, run, way, size)) for size in sizes for way in ways]


def losses_of(run: Run, positions: int) -> dict[str, Any]:
    """The ways of `loss.py`, at the width of the language model."""
    llm = run.geometry().llm
    settings = {"width": llm.hidden_size, "vocabulary": llm.vocab_size}
    return loss.losses(argparse.Namespace(**vars(run.args) | settings), positions)


def measure_loss(run: Run, way: str, positions: int) -> dict[str, Any]:
    """Time and peak memory of one way to compute the loss."""
    run.models.clear()
    step, llm = losses_of(run, positions)[way], run.geometry().llm
    seconds = median_seconds(step, 1 if run.is_rehearsal else 10, run.device)
    computed = positions if way == "every position" else int(loss.LABELLED * positions)
    flops = 3 * 2 * computed * llm.hidden_size * llm.vocab_size
    peak = peak_bytes_above(run.device, step) if run.on_gpu else None
    return {"seconds": seconds, "limit_seconds": flops / run.limits.flops, "peak_bytes": peak}


def loss_report(run: Run, figures: Figures) -> str:
    rows = [
        [name, milliseconds(f["seconds"]), milliseconds(f["limit_seconds"]), gibibytes(f["peak_bytes"])]
        for name, f in figures.items()
    ]
    return (
        f"{markdown_table(['logits of, positions', 'ms', 'limit, ms', 'peak, GiB'], rows)}\n\nForward and backward "
        f"pass of the output layer; {loss.LABELLED:.0%} of the positions are labelled. The limit counts three matrix "
        "products at the GPU's peak, no recomputation."
    )


def packing_items(run: Run) -> list[Item]:
    names = ["acformer"] if run.is_rehearsal else list(packing.CONNECTORS)
    return [Item(name, partial(measure_packing, run, name)) for name in names]


def packing_args(run: Run) -> argparse.Namespace:
    toy = {"geometry": "toy", "layers": None, "ranks": 1, "samples": 200, "rounds": 1}
    settings = toy if run.is_rehearsal else {"geometry": "7b", "layers": LAYERS, "ranks": RANKS, "samples": 20000}
    return argparse.Namespace(**vars(run.args) | settings)


def measure_packing(run: Run, name: str) -> dict[str, Any]:
    """Both layouts of one connector, as `packing.py` measures them."""
    run.models.clear()
    tokens = 17 if run.is_rehearsal and name == "acformer" else packing.CONNECTORS[name]
    return packing.measure(packing_args(run), name, tokens)


def packing_report(run: Run, figures: Figures) -> str:
    args = packing_args(run)
    layers = args.layers or run.geometry().llm.layers
    return (
        f"{layers} layers of the language model, all of it in one precision, {args.ranks} processes one after the "
        f"other.\n\n{packing.report(args, list(figures.values()))}"
    )


TESTS = Part("tests", "Unit tests on the device", test_items, test_report)
LOSS = Part("loss", "The loss", loss_items, loss_report)
PACKING = Part("packing", "Padded and packed epochs of stage 2", packing_items, packing_report)
