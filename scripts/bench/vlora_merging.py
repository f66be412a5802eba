"""After how many tokens merging pays: part of `vlora.py`'s benchmark."""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved_medians, interleaved_times, markdown_table
from stage1_model import Geometry
from torch import nn
from vlora_hooks import hollow, low_rank_step
from vlora_prefill import Prompt, decode_step, start

from llava.model import LlavaLlamaForCausalLM
from llava.model.multimodal_projector.perceptual_weights import PROJECTIONS
from llava.model.multimodal_projector.weight_merging import merged

MERGEABLE = "".join(PROJECTIONS)


def measure_merging(
    args: argparse.Namespace,
    geometry: Geometry,
    model: LlavaLlamaForCausalLM,
    stock: LlavaLlamaForCausalLM,
    connector: nn.Module,
) -> dict[str, Any]:
    """Seconds of merging and restoring, of the products in it, and of tokens with merged and unmerged weights.

    Args:
        stock: as in `measure_hooks`.
    """
    prompt = Prompt.random(geometry, 1, args.text_tokens[-1], args.device, model.dtype)
    state = start(model, connector, prompt)
    layers, weights, place = model.model.layers, state.weights, (state.cache, state.mask)
    factors = [
        pair
        for index in range(len(layers))
        for letter, pair in (weights.of_layer(index) or {}).items()
        if letter in MERGEABLE
    ]

    def merge() -> None:
        with merged(layers, weights):
            pass

    @torch.no_grad()
    def multiply() -> None:
        for a, b in factors:
            b @ a[0].T

    width = geometry.llm.hidden_size
    lengths = [width // 8, width // 2, 2 * width]
    runs: dict[str, Callable[[], Any]] = {"merge": merge, "multiply": multiply}
    runs |= {str(length): low_rank_step(weights.only(MERGEABLE), len(layers), length) for length in lengths}
    runs |= {"step": decode_step(model, *place, weights)}
    seconds = interleaved_medians(runs, 4 * args.rounds, args.device)

    # With merged matrices only m is left to bind; that they hold other numbers does not matter to a clock.
    empty = hollow(stock, batch=1)
    steps: dict[str, Callable[[], Any]] = {
        "unmerged": decode_step(empty, *place, weights),
        "merged": decode_step(empty, *place, weights.only("m")),
    }
    times = interleaved_times(steps, 40 * args.rounds, args.device)
    saved = [unmerged - merged for unmerged, merged in zip(times["unmerged"], times["merged"])]
    return {
        "matrices": len(factors),
        "width": width,
        **{name: seconds[name] for name in ("merge", "multiply", "step")},
        "paths": {length: seconds[str(length)] for length in lengths},
        "saved": statistics.quantiles(saved, n=4),
    }


def merging_table(result: dict[str, Any]) -> str:
    """Break-even as computed and as measured, and whole answers of several lengths."""
    saved = result["saved"][1]

    def row(name: str, merging: float, token: float) -> list[str]:
        tokens = f"{merging / token:,.0f}" if token > 0 else "never"
        return [name, f"{1e3 * merging:,.2f}", f"{1e6 * token:,.2f}", tokens]

    rows = [["arithmetic: 2 d^2 r against 4 d r", "-", "-", f"{result['width'] // 2:,}"]]
    for name, key in (("products alone", "multiply"), ("merging and restoring", "merge")):
        rows += [row(f"{name}, {n:,} positions at once", result[key], t / n) for n, t in result["paths"].items()]
    rows.append(row("merging and restoring, token by token", result["merge"], saved))
    text = markdown_table(["merging q, k, v, o", "takes, ms", "saves, us per token", "pays after, tokens"], rows)

    def answer(tokens: int) -> list[str]:
        times = tokens * result["step"], result["merge"] + tokens * (result["step"] - saved)
        return [f"{tokens:,} new tokens", *(f"{1e3 * time:,.1f}" for time in times), f"{times[0] / times[1]:.3f}x"]

    header = ["decode, batch 1", "unmerged, ms", "merged, ms", "ratio"]
    text += "\n\n" + markdown_table(header, [answer(tokens) for tokens in (1, 16, 64, 256, 1024, 4096)])
    low, _, high = (f"{1e6 * value:,.0f}" for value in result["saved"])
    return text + (
        f"\n\n{result['matrices']} matrices; what a decoded token saves was measured with all but the large products "
        f"running (quartiles {low} to {high} us), the answers are put together from it. Arithmetic counts "
        "multiplications only. Merging also saves, rewrites and restores whole matrices, which memory bounds, whatever "
        "the rank; a decoded token's low-rank paths in turn cost calls and reading A and B, not multiplications. The "
        "first moves the break-even up, the second down."
    )
