"""What the parts of `gpu.py` share: the settings of a run, its limits, and the model they have in memory."""

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common import peak_flops, precision, synchronize
from gpu_results import Item
from stage1_model import GEOMETRIES, Geometry

Figures = dict[str, dict[str, Any]]


class OneModel:
    """Keeps the last thing that was built, since two models of 7B rarely fit side by side."""

    def __init__(self) -> None:
        self.key: Any = None
        self.value: Any = None

    def get(self, key: Any, build: Callable[[], Any]) -> Any:
        """What `build` made for this key; what was made for another one is freed first."""
        if key != self.key:
            self.clear()
            self.value, self.key = build(), key
        return self.value

    def clear(self) -> None:
        self.key = self.value = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Limits:
    """What the GPU could do at best.

    Attributes:
        flops: per second, of matrix products.
        flops_source: where that figure comes from.
        bandwidth: bytes per second, measured by a copy, read and written ones counted.
    """

    flops: float
    flops_source: str
    bandwidth: float


@dataclass(frozen=True)
class Run:
    """One run of `gpu.py`.

    Attributes:
        args: of `common`'s benchmarks.
        limits: the GPU's.
        models: the model in memory.
    """

    args: argparse.Namespace
    limits: Limits
    models: OneModel = field(default_factory=OneModel)

    @property
    def device(self) -> str:
        return self.args.device

    @property
    def is_rehearsal(self) -> bool:
        return self.args.quick

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        return precision(self.args)

    def geometry(self, layers: int | None = None) -> Geometry:
        """7B, or what stands in for it, with so many layers of the language model."""
        geometry = GEOMETRIES["toy" if self.is_rehearsal else "7b"]
        if layers is None:
            return geometry
        return dataclasses.replace(geometry, llm=dataclasses.replace(geometry.llm, layers=layers))


@dataclass(frozen=True)
class Part:
    """A group of measurements that can be run by its name.

    Attributes:
        name: on the command line.
        title: its heading on the page.
        items: what there is to measure.
        report: Markdown from the figures of the items that are done.
    """

    name: str
    title: str
    items: Callable[[Run], list[Item]]
    report: Callable[[Run, Figures], str]


def measure_limits(args: argparse.Namespace) -> Limits:
    """Time a large matrix product and a large copy; data sheets win over the product where they are known."""
    dtype, on_gpu = precision(args), args.device.startswith("cuda")
    side, values = (8192, 2**30) if on_gpu else (256, 2**20)
    matrix = torch.randn(side, side, device=args.device, dtype=dtype)
    source = torch.zeros(values, device=args.device, dtype=dtype)
    target = torch.empty_like(source)
    product = median_seconds(lambda: matrix @ matrix, 10, args.device)
    copy = median_seconds(lambda: target.copy_(source), 10, args.device)
    flops, flops_source = peak_flops(args, 2 * side**3 / product, args.peak_tflops)
    return Limits(flops, flops_source, 2 * source.nbytes / copy)


def median_seconds(run: Callable[[], Any], rounds: int, device: str) -> float:
    """Median of `rounds` timed calls after two that warm up."""
    seconds = []
    for _ in range(rounds + 2):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}" if seconds >= 0.01 else f"{1e3 * seconds:,.3f}"


def gibibytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**30:,.1f}"
