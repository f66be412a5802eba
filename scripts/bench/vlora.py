"""VLoRA against `mlp2x_gelu` on all patches: prefill, decode, hooks, stage-1 step and generator.

    python scripts/bench/vlora.py --markdown docs/benchmarks/vlora.md                   # CPU: scaled down
    python scripts/bench/vlora.py --geometry 7b --markdown docs/benchmarks/vlora-7b.md  # GPU of 40 GB and more
    python scripts/bench/vlora.py --geometry 7b --vlora-dim 1024                        # the published stage 1's width

All connectors share one tower and one language model and take turns, so the ratios come from one run. Random weights
and images, one image per row behind the first token, no padding. *Arithmetic allows* is the ratio of the FLOPs of
`llava.tools.cost` at the same geometry; `small` keeps CLIP-L/336's 576 patches and shares of the arithmetic close to
7B's, for the generator and the low-rank paths too.
"""

import argparse
import dataclasses
import gc
import statistics
from typing import Any

import stage1
import torch
import vlora_prefill
from common import add_common_flags, markdown_table, peak_flops, precision, publish
from stage1_model import GEOMETRIES, Geometry, build_connector, build_model
from vlora_generator import generator_table, measure_generator
from vlora_hooks import hooks_table, measure_hooks, twin

from llava.tools.cost import BASELINE

OURS = "vlora"
PARTS = ("prefill", "hooks", "stage1", "generator")


def measure_inference(args: argparse.Namespace, geometry: Geometry) -> dict[str, Any]:
    """Everything without gradient, on one model."""
    model = build_model(geometry, args.device, precision(args), args.attention).eval()
    stock = twin(model)  # before anything hangs hooks on the layers
    connectors = {
        name: build_connector(model, name, args.tokens, precision(args)).eval()
        for name in dict.fromkeys([BASELINE, OURS, *args.connectors])
    }
    vlora = connectors[OURS]
    figures: dict[str, Any] = {}
    if "generator" in args.parts:
        figures["generator"] = measure_generator(args, geometry, vlora)
    if "hooks" in args.parts:
        figures["hooks"] = measure_hooks(args, geometry, model, stock, vlora)
    if "prefill" in args.parts:
        figures["prefill"] = vlora_prefill.measure(args, geometry, model, connectors)
    return figures


def measure_stage1(args: argparse.Namespace, geometry: Geometry) -> list[dict[str, Any]]:
    """Training steps as `stage1.py` measures them, with recomputation, per number of text tokens."""
    results = []
    for text_tokens in args.text_tokens:
        settings = {"text_tokens": text_tokens, "batch": args.stage1_batch, "connectors": [OURS, *args.connectors]}
        settings |= {"layers": None, "memory": False}
        one, _ = stage1.measure(argparse.Namespace(**vars(args) | settings), geometry)
        results += [result | {"text_tokens": text_tokens, "batch": args.stage1_batch} for result in one]
        gc.collect()
    return results


def stage1_table(results: list[dict[str, Any]]) -> str:
    """Step times and ratios."""
    rows = [
        [
            f"{r['connector']}, {r['text_tokens']} text",
            f"{1e3 * r['seconds']:,.1f}",
            f"{r['seconds_ratio']:.2f}x",
            f"{r['flops_ratio']:.2f}x",
            "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.0f}",
        ]
        for r in results
    ]
    header = [f"stage-1 step, batch {results[0]['batch']}", "step, ms", "speed-up", "arithmetic allows", "peak, MiB"]
    return markdown_table(header, rows)


def describe(geometry: Geometry) -> str:
    """The sizes in words."""
    llm, vision, shape = geometry.llm, geometry.vision, geometry.generator
    return (
        f"Language model of {llm.layers} layers and width {llm.hidden_size}, tower of {vision.blocks} blocks and width "
        f"{vision.width} on {vision.patches} patches; generator of width {shape.width}, depth {shape.depth}, rank "
        f"{shape.rank}, letters {shape.letters}, every {shape.skip}th layer weighted."
    )


def report(args: argparse.Namespace, geometry: Geometry, figures: dict[str, Any]) -> str:
    """All tables, with a word on how to read them."""
    parts = [describe(geometry)]
    if "prefill" in figures:
        measured = statistics.median(r["matmul_flops"] for r in figures["prefill"])
        peak_is = peak_flops(args, measured, args.peak_tflops)[1]
        parts += [
            "## Prefill\n\nTower, connector and language model, to the logits of the last position; *language model "
            "alone* is what is left without tower and connector. Arithmetic does not count reading the weights, which "
            f"a short sequence at batch 1 waits for. MFU is relative to {peak_is}.",
            vlora_prefill.prefill_table(args, figures["prefill"]),
            "## Decode\n\nOne token for every row behind these prompts. Bytes are counted in the cache and the weights "
            "themselves.",
            vlora_prefill.decode_table(figures["prefill"]),
        ]
    if "hooks" in figures:
        parts += [
            f"## Hooks\n\nThe language model's decode step behind an image and {args.text_tokens[-1]} text tokens, "
            "every row with its own weights. *Products alone* are the same low-rank products as bare calls on tensors "
            "that lie ready. Percentages: medians and quartiles of differences taken round by round, "
            f"{figures['hooks'][0]['rounds']} rounds. As the hooks are little in a long step, the last column measures "
            "them in a model without its large products: with far less noise, but on a CPU with warm caches. *Nothing "
            "bound* is a step of text-only rows.",
            hooks_table(figures["hooks"]),
        ]
    if "stage1" in figures:
        parts += [
            "## Stage-1 step\n\nFrozen language model with recomputation, as in `stage1.py`. Arithmetic counts a "
            "backward pass through all layers; with perceptual weights it ends at the first weighted one.",
            stage1_table(figures["stage1"]),
        ]
    if "generator" in figures:
        parts += [
            "## Generator\n\nFrom the tower's features to A. *Layer by layer*: every cross-attention of every stack "
            "projects its own keys and values. Difference: the largest, relative to the largest weight.",
            generator_table(figures["generator"]),
        ]
    return "\n\n".join(parts)


def parse_arguments() -> argparse.Namespace:
    """The command line; what is not given depends on the device and on `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="7b on a GPU, small elsewhere if not given")
    parser.add_argument("--vlora-dim", type=int, help="another width of the generator than the geometry's")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows, each with an image of its own")
    parser.add_argument("--text-tokens", type=int, nargs="+", help="beside each image; 32 64 128 if not given")
    parser.add_argument("--stage1-batch", type=int, help="images per training step; 16 on a GPU, 1 elsewhere")
    parser.add_argument("--connectors", nargs="+", default=[], help=f"others beside {BASELINE} and {OURS}")
    parser.add_argument("--tokens", type=int, default=145, help="visual tokens that the others are asked for")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; everything")
    parser.add_argument("--attention", default="sdpa", help="implementation, for tower and language model")
    parser.add_argument("--peak-tflops", type=float, help="what MFU is relative to; known for H200, H100 and A100")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.geometry = args.geometry or ("7b" if on_gpu else "small")
    args.stage1_batch = args.stage1_batch or (16 if on_gpu else 1)
    args.rounds = args.rounds or (10 if on_gpu else 5)
    args.text_tokens = args.text_tokens or [32, 64, 128]
    if args.quick:
        args.geometry, args.tokens, args.rounds = "toy", 17, 1
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    geometry = GEOMETRIES[args.geometry]
    if args.vlora_dim:
        generator = dataclasses.replace(geometry.generator, width=args.vlora_dim)
        geometry = dataclasses.replace(geometry, generator=generator)
    figures: dict[str, Any] = {"stage1": measure_stage1(args, geometry)} if "stage1" in args.parts else {}
    if set(args.parts) - {"stage1"}:
        figures |= measure_inference(args, geometry)
    title = f"VLoRA, {args.geometry} geometry, generator of width {geometry.generator.width}"
    publish(args, title, report(args, geometry, figures), figures)


if __name__ == "__main__":
    main()
