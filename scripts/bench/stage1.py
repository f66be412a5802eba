"""One stage-1 training step for every connector, against `mlp2x_gelu` on all patches.

    python scripts/bench/stage1.py --markdown docs/benchmarks/stage1-cpu.md                      # CPU: scaled down
    python scripts/bench/stage1.py --geometry 7b --batch 16 --markdown docs/benchmarks/stage1.md # GPU of 40 GB and more
    python scripts/bench/stage1.py --geometry 13b --layers 4 --batch 16                          # fits anywhere

A step is LLaVA's: frozen vision tower without gradient, connector trained by AdamW, frozen language model whose
activations are recomputed, loss over all text tokens. Random weights and images; one image per row behind the first
text token, no padding.
All connectors share one tower and one language model and take turns, so the ratios come from one run.

*Arithmetic allows* is the ratio of the FLOPs of `llava.tools.cost` at the same geometry. With `--layers N` only N
layers of the language model are there; what the others would take is added from the time the stack of N takes alone.
MFU counts the FLOPs a step needs without recomputation. `small` keeps CLIP-L/336's 576 patches and 16 heads, and shares
of the arithmetic close to 7B's.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from common import (
    add_common_flags,
    interleaved_medians,
    markdown_table,
    peak_bytes_above,
    peak_flops,
    precision,
    publish,
    random_images,
    run_again,
)
from stage1_model import GEOMETRIES, Geometry, build_connector, build_model

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaLlamaForCausalLM
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.registry import CONNECTORS
from llava.model.splice import LanguageInputs
from llava.program import RequestError
from llava.tools.cost import BASELINE, Cost


@dataclass(frozen=True)
class Contestant:
    """A connector with its number of visual tokens, its training step, and the language model's stack alone."""

    tokens: int
    step: Callable[[], None]
    stack: Callable[[], None]


def contestant(model: LlavaLlamaForCausalLM, name: str, args: argparse.Namespace, images: torch.Tensor) -> Contestant:
    """Give the model's image its connector `name` and prepare a batch.

    Raises:
        ValueError: the connector cannot give `args.tokens` tokens.
    """
    connector = build_connector(model, name, args.tokens, precision(args))
    optimizer = torch.optim.AdamW(connector.parameters(), lr=5e-4, fused=args.device.startswith("cuda"))
    text = torch.randint(model.config.vocab_size, (args.batch, args.text_tokens), device=args.device)
    marker = text.new_full((args.batch, 1), IMAGE_TOKEN_INDEX)
    input_ids = torch.cat([text[:, :1], marker, text[:, 1:]], dim=1)
    labels = input_ids.masked_fill(input_ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)

    def step() -> None:
        model.model.mm_projector = connector
        model(input_ids, torch.ones_like(input_ids), labels=labels, images=images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.model.mm_projector = connector
    return Contestant(model.num_visual_tokens, step, stack_step(model, args, input_ids, images))


def stack_step(
    model: LlavaLlamaForCausalLM, args: argparse.Namespace, input_ids: torch.Tensor, images: torch.Tensor
) -> Callable[[], None]:
    """Forward and backward of the language model's layers alone, as many positions as a step has; logits of one."""
    positions = max(model.num_visual_tokens, 1) + args.text_tokens  # an image without tokens keeps its place
    embeds = torch.randn(args.batch, positions, model.config.hidden_size, device=args.device, dtype=precision(args))
    leaves, weights = [embeds], None
    if model.takes_weights:
        with torch.no_grad():
            weights = model.assemble_inputs(LanguageInputs(input_ids), ImageInputs(images)).weights
        leaves += [*weights.inputs.values(), *weights.outputs.values()]
    for leaf in leaves:
        leaf.requires_grad_()

    def stack() -> None:
        logits = model(inputs_embeds=embeds, perceptual_weights=weights, logits_to_keep=1).logits
        torch.autograd.grad(logits.sum(), leaves)

    return stack


def known_connectors() -> list[str]:
    """The baseline and every connector with settings; of two names the last."""
    own = [entry for entry in CONNECTORS.values() if fields(entry.config_class)]
    return [BASELINE, *sorted({entry.connector_class: entry.name for entry in own}.values())]


def measure(args: argparse.Namespace, geometry: Geometry) -> tuple[list[dict[str, Any]], float]:
    """Figures per connector, the baseline first, and the FLOP/s of a matrix product measured beside them."""
    model = build_model(geometry, args.device, precision(args), args.attention)
    images = random_images(geometry.vision, args.batch, args.device, precision(args))
    contestants: dict[str, Contestant] = {}
    for name in dict.fromkeys([BASELINE, *args.connectors]):
        try:
            contestants[name] = contestant(model, name, args, images)
        except ValueError as error:
            print(f"{name} is left out: {error}\n")
    runs: dict[str, Callable[[], Any]] = {name: entry.step for name, entry in contestants.items()}
    if args.layers:
        runs |= {f"{name} stack": entry.stack for name, entry in contestants.items()}
    side = 64 if args.quick else 4096 if args.device.startswith("cuda") else 1024
    matrix = torch.randn(side, side, device=args.device, dtype=precision(args))
    seconds = interleaved_medians({**runs, "matmul": lambda: matrix @ matrix}, args.rounds, args.device)

    results = []
    for name, entry in contestants.items():
        result = {"connector": name, "tokens": entry.tokens, "seconds": seconds[name]}
        if args.layers:
            result["stack_seconds"] = seconds[f"{name} stack"]
            missing = GEOMETRIES[args.geometry].llm.layers - args.layers
            result["full_seconds"] = seconds[name] + missing / args.layers * result["stack_seconds"]
        result["peak_bytes"] = peak_memory(args, name, entry)
        results.append(result | arithmetic(args, geometry, name, entry.tokens))
    first = results[0]
    for result in results:
        for key in ("seconds", "full_seconds", "flops", "full_flops"):
            if result.get(key):
                result[f"{key}_ratio"] = first[key] / result[key]
    return results, 2 * side**3 / seconds["matmul"]


def peak_memory(args: argparse.Namespace, name: str, entry: Contestant) -> int | None:
    """Bytes above the weights that one step needs: activations, gradients, logits. On a CPU with --memory only."""
    if args.device.startswith("cuda"):
        return peak_bytes_above(args.device, entry.step)
    return run_again("--memory-of", name) if args.memory else None


def measure_memory(args: argparse.Namespace, geometry: Geometry, name: str) -> int:
    """The task of a fresh process on a CPU: the peak of one connector's step, optimizer states included."""
    model = build_model(geometry, args.device, precision(args), args.attention)
    images = random_images(geometry.vision, args.batch, args.device, precision(args))
    return peak_bytes_above(args.device, contestant(model, name, args, images).step)


def arithmetic(args: argparse.Namespace, geometry: Geometry, name: str, tokens: int) -> dict[str, float]:
    """FLOPs of a step as it ran, as it would be at full depth, and without recomputation; empty if unknown."""
    try:
        shapes = (geometry.llm, geometry.vision, geometry.resampler, geometry.generator)
        cost = Cost(name, tokens, args.text_tokens, *shapes)
        full = dataclasses.replace(cost, llm=GEOMETRIES[args.geometry].llm)
        return {
            "flops": args.batch * cost.stage1_step_flops(recompute=True),
            "full_flops": args.batch * full.stage1_step_flops(recompute=True),
            "needed_flops": args.batch * cost.stage1_step_flops(recompute=False),
        }
    except RequestError:  # a connector whose cost nobody has written down
        return {}


def report(args: argparse.Namespace, results: list[dict[str, Any]], peak: float, peak_is: str) -> str:
    """The figures as a Markdown table, with a second one for the full depth if only some layers ran."""

    def ratio(result: dict[str, Any], key: str) -> str:
        return f"{result[key]:.2f}x" if key in result else "-"

    rows = []
    for r in results:
        memory = "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.0f}"
        mfu = f"{r['needed_flops'] / r['seconds'] / peak:.1%}" if "needed_flops" in r else "-"
        step, images = f"{1e3 * r['seconds']:,.1f}", f"{args.batch / r['seconds']:,.2f}"
        ratios = [ratio(r, "seconds_ratio"), ratio(r, "flops_ratio")]
        rows.append([r["connector"], str(r["tokens"]), step, images, *ratios, memory, mfu])
    header = ["connector", "tokens", "step, ms", "images/s", "speed-up", "arithmetic allows", "peak, MiB", "MFU"]
    text = markdown_table(header, rows)
    text += f"\n\nMFU is relative to {peak_is}; peak is memory above the weights of all parts"
    text += "." if results[0]["peak_bytes"] else " (on a CPU with `--memory` only)."
    if args.layers:
        depth = GEOMETRIES[args.geometry].llm.layers
        header = [
            "connector",
            f"stack of {args.layers}, ms",
            f"step at {depth} layers, ms",
            "speed-up",
            "arithmetic allows",
        ]
        rows = [
            [
                r["connector"],
                f"{1e3 * r['stack_seconds']:,.1f}",
                f"{1e3 * r['full_seconds']:,.1f}",
                ratio(r, "full_seconds_ratio"),
                ratio(r, "full_flops_ratio"),
            ]
            for r in results
        ]
        text += f"\n\nExtrapolated from {args.layers} layers of the language model to all {depth}:\n\n"
        text += markdown_table(header, rows)
    return text


def parse_arguments() -> argparse.Namespace:
    """The command line; what is not given depends on the device and on `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="7b on a GPU, small elsewhere if not given")
    parser.add_argument("--layers", type=int, help="run only so many layers of the language model")
    parser.add_argument("--batch", type=int, help="images per step; 16 on a GPU, 1 elsewhere if not given")
    parser.add_argument("--tokens", type=int, default=145, help="visual tokens that the connectors are asked for")
    parser.add_argument("--text-tokens", type=int, default=64, help="text tokens beside each image")
    parser.add_argument("--connectors", nargs="+", default=known_connectors(), help="which; the baseline always runs")
    parser.add_argument("--attention", default="sdpa", help="sdpa or flash_attention_2, for tower and language model")
    parser.add_argument("--peak-tflops", type=float, help="what MFU is relative to; known for H200, H100 and A100")
    parser.add_argument("--memory", action="store_true", help="on a CPU: peak memory too, each in a fresh process")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # a fresh process's task
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.geometry = args.geometry or ("7b" if on_gpu else "small")
    args.batch = args.batch or (16 if on_gpu else 1)
    args.rounds = args.rounds or (10 if on_gpu else 5)
    if args.quick:
        args.geometry, args.tokens, args.text_tokens, args.rounds = "toy", 17, 16, 1
    if args.layers and not 1 <= args.layers <= GEOMETRIES[args.geometry].llm.layers:
        parser.error(f"--layers must be 1 to {GEOMETRIES[args.geometry].llm.layers} for {args.geometry}")
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    geometry = GEOMETRIES[args.geometry]
    if args.layers:
        geometry = dataclasses.replace(geometry, llm=dataclasses.replace(geometry.llm, layers=args.layers))
    if args.memory_of:
        print(json.dumps(measure_memory(args, geometry, args.memory_of)))
        return
    results, measured = measure(args, geometry)
    peak, peak_is = peak_flops(args, measured, args.peak_tflops)
    title = f"Stage-1 step, {args.geometry} geometry, {args.text_tokens} text tokens, batch {args.batch}"
    publish(args, title, report(args, results, peak, peak_is), {"peak_flops": peak, "connectors": results})


if __name__ == "__main__":
    main()
