"""What the benchmarks share: where and when they ran, interleaved timing, peak memory, reports, random towers."""

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.files import write_text_atomically
from llava.tools.flops import VisionShape
from llava.tools.machine import PEAK_TFLOPS, commit, machine_kind

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOY_VISION = VisionShape(width=64, blocks=3, heads=4, side=8, patch_values=4 * 4 * 3)


def add_common_flags(parser: ArgumentParser) -> None:
    """Device, precision, repetitions and where the results go; the same in every benchmark."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="bf16 on a GPU, fp32 elsewhere if not given")
    parser.add_argument("--rounds", type=int, help="timed repetitions of everything, interleaved; medians are reported")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and images")
    parser.add_argument(
        "--quick", action="store_true", help="a toy geometry, to see that it runs; its figures mean little"
    )
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--markdown", help="also write the report to this file")


def precision(args: Namespace) -> torch.dtype:
    """The precision that the flags ask for."""
    return DTYPES[args.dtype or ("bf16" if args.device.startswith("cuda") else "fp32")]


def environment(args: Namespace) -> dict[str, str]:
    """Date, commit, versions and machine kind, for the head of a report."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "machine": machine_kind(args.device),
        "threads": str(torch.get_num_threads()),
        "precision": str(precision(args)).removeprefix("torch."),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def peak_flops(args: Namespace, measured: float, given_tflops: float | None) -> tuple[float, str]:
    """The FLOP/s that count as 100 % and where they come from: what is given, the data sheet, or what was measured."""
    if given_tflops:
        return 1e12 * given_tflops, f"{given_tflops:g} TFLOP/s (given)"
    if args.device.startswith("cuda") and precision(args) != torch.float32:
        kind = machine_kind(args.device)
        for name, tflops in PEAK_TFLOPS.items():
            if all(word in kind for word in name.split()):
                return 1e12 * tflops, f"{tflops:g} TFLOP/s ({name}, data sheet)"
    return measured, f"a square matrix product measured in the same run, {measured / 1e9:,.0f} GFLOP/s"


def synchronize(device: str) -> None:
    """Wait until a GPU has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def interleaved_times(runs: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each run, round by round. They take turns, so that a slow moment of the machine meets all.

    One warm-up each comes before; every other round goes backwards, so that none profits from what it always follows.
    Equal indices are of the same round: what runs differ by is best taken per round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name in list(runs) if round_number % 2 else reversed(runs):
            synchronize(device)
            start = time.perf_counter()
            runs[name]()
            synchronize(device)
            if round_number > 0:
                times[name].append(time.perf_counter() - start)
    return times


def interleaved_medians(runs: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each run of `interleaved_times`."""
    return {name: statistics.median(times) for name, times in interleaved_times(runs, rounds, device).items()}


def peak_bytes_above(device: str, run: Callable[[], Any]) -> int:
    """How far memory rises while `run` works, in bytes. On a CPU meaningful only in a process that did nothing larger.

    On a CPU it is the process's high-water mark of resident memory. `VmHWM` is read where there is one: `ru_maxrss`
    also counts what the parent process held when it started this one.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _peak_rss()
    run()
    return _peak_rss() - before


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_again(*flags: str) -> Any:
    """This benchmark in a fresh process with `flags` added; returns the JSON of its last line."""
    command = [sys.executable, *sys.argv, *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up; all but the first are numbers, to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join(line(cells) for cells in [header, rule, *rows])


def publish(args: Namespace, title: str, body: str, figures: dict[str, Any]) -> None:
    """Print the report; write it and the figures where the flags say."""
    env = environment(args)
    head = "\n".join(f"- {key}: `{value}`" if key == "command" else f"- {key}: {value}" for key, value in env.items())
    text = f"# {title}\n\n{head}\n\n{body}\n"
    print(text)
    if args.markdown:
        write_text_atomically(args.markdown, text)
    if args.json:
        write_text_atomically(args.json, json.dumps({"environment": env, **figures}, indent=2) + "\n")


def clip_config(vision: VisionShape) -> CLIPVisionConfig:
    """CLIP's configuration for a shape."""
    patch_size = round((vision.patch_values / 3) ** 0.5)
    return CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=4 * vision.width,
        num_hidden_layers=vision.blocks,
        num_attention_heads=vision.heads,
        image_size=vision.side * patch_size,
        patch_size=patch_size,
    )


@contextmanager
def clip_folder(vision: VisionShape) -> Iterator[str]:
    """A temporary folder with CLIP's configuration only: enough to build a tower that is then filled at random."""
    with tempfile.TemporaryDirectory() as folder:
        clip_config(vision).save_pretrained(folder)
        yield folder


def random_clip(vision: VisionShape, attention: str, device: str, dtype: torch.dtype) -> CLIPVisionModel:
    """CLIP with random weights, frozen. `attention`: `sdpa` (fused) or `eager` (the only one that returns maps)."""
    with torch.device(device):
        clip = CLIPVisionModel._from_config(clip_config(vision), attn_implementation=attention, dtype=dtype)
    return clip.eval().requires_grad_(False)


def random_images(vision: VisionShape, batch: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """`[batch, 3, side, side]` of noise."""
    side = clip_config(vision).image_size
    return torch.randn(batch, 3, side, side, device=device, dtype=dtype)
