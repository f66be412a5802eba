"""All benchmarks that need a GPU, on one NVIDIA GPU in under 25 minutes; `gpu.sh` starts it.

    bash scripts/bench/gpu.sh                  # every part
    bash scripts/bench/gpu.sh steps serving    # some
    bash scripts/bench/gpu.sh --rehearse       # every part at a toy size on the CPU

Nothing is downloaded: weights are random, at the geometry of CLIP-L/336 and Vicuna-7B, and images are noise. It needs
torch and transformers; FlashAttention and pytest are used where they are installed.

Every figure is kept as soon as it is there. An interrupted run goes on where it stopped when it is started again; a
part stops after `--limit` seconds. What fails, or does not fit in memory, is recorded and the rest goes on; the program
then ends with 1.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from common import add_common_flags, environment, publish
from gpu_bench import OneModel, Part, Run, measure_limits
from gpu_inference import ANCHORS, DECODE, SERVING
from gpu_results import WRONG, Results, run_items
from gpu_steps import PART as STEPS
from gpu_training import LOSS, PACKING, TESTS

from llava.program import RequestError, run_program
from llava.tools.machine import REPOSITORY

PARTS = {part.name: part for part in (TESTS, STEPS, ANCHORS, DECODE, SERVING, LOSS, PACKING)}
PAGE = REPOSITORY / "docs" / "benchmarks" / "gpu"
STAYS = ("commit", "versions", "machine", "precision")  # of an environment: what results must agree in


def parse_arguments() -> argparse.Namespace:
    """The command line.

    Raises:
        RequestError: there is no GPU, or a part is unknown.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all if none is named")
    add_common_flags(parser)
    parser.add_argument("--rehearse", action="store_true", help="everything at a toy size on the CPU, to see it work")
    parser.add_argument("--out", type=Path, help="folder of the results; gpu-results if not given")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--limit", type=float, default=540, help="seconds for each part")
    parser.add_argument("--peak-tflops", type=float, help="what MFU is relative to; known for H200, H100 and A100")
    parser.add_argument("--skip-tried", action="store_true", help=argparse.SUPPRESS)  # after a restart
    args = parser.parse_args()
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        raise RequestError(f"Unknown part {unknown[0]!r}: use {', '.join(PARTS)}")
    if args.rehearse:
        args.device, args.quick, args.dtype = "cpu", True, args.dtype or "bf16"
    elif not args.device.startswith("cuda") or not torch.cuda.is_available():
        raise RequestError("torch sees no NVIDIA GPU here; --rehearse runs every part at a toy size on the CPU")
    args.out = args.out or Path("gpu-results/rehearsal" if args.rehearse else "gpu-results")
    page = args.out / "gpu" if args.rehearse else PAGE
    args.markdown, args.json = args.markdown or f"{page}.md", args.json or f"{page}.json"
    args.rounds = args.rounds or (1 if args.rehearse else 5)
    return args


def report(run: Run, results: Results) -> str:
    """The page: a section for each part with figures, and what has none."""
    sections = [
        f"Peak: {run.limits.flops_source}. Bandwidth: {run.limits.bandwidth / 1e9:,.0f} GB/s, measured by a copy, "
        "bytes read and written. Random weights, synthetic samples and images."
    ]
    if run.is_rehearsal:
        sections.append("**A rehearsal at a toy size on a CPU; the figures mean nothing.**")
    for part in PARTS.values():
        figures = results.of_part(part.name)
        if figures:
            sections.append(f"## {part.title}\n\n{part.report(run, figures)}")
    troubles = results.troubles()
    if troubles:
        sections.append("## Without figures\n\n" + "\n".join(f"* {line}" for line in troubles))
    return "\n\n".join(sections)


def run_parts(run: Run, parts: list[Part], results: Results) -> None:
    """Run the parts; start the program again if the GPU stops answering."""
    for part in parts:
        items = part.items(run)
        if not run_items(part.name, items, results, run.args.limit, run.models.clear, run.args.skip_tried):
            sys.stdout.flush()
            flags = [flag for flag in sys.argv if flag not in ("--fresh", "--skip-tried")]
            os.execv(sys.executable, [sys.executable, *flags, "--skip-tried"])
        run.models.clear()


def main() -> None:
    """Measure what is missing, print and write the page."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    known: dict[str, Any] = environment(args)
    results = Results(args.out / "items.json", {key: known[key] for key in STAYS}, args.fresh)
    run = Run(args, measure_limits(args), OneModel())
    run.models.clear()
    run_parts(run, [part for part in PARTS.values() if not args.parts or part.name in args.parts], results)
    publish(args, "Benchmarks on one GPU", report(run, results), {"limits": vars(run.limits), "parts": results.parts})
    for line in results.troubles():
        print(line)
    statuses = {results.status(part, item) for part, items in results.parts.items() for item in items}
    if statuses & set(WRONG):
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
