"""What perceptual weights cost a decode step beyond their arithmetic: part of `vlora.py`'s benchmark."""

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved_times, markdown_table
from stage1_model import Geometry
from torch import nn
from vlora_prefill import Prompt, decode_step, start

from llava.model import LlavaLlamaForCausalLM
from llava.model.multimodal_projector.perceptual_weights import PROJECTIONS, PerceptualWeights


class Ready(nn.Module):
    """In a large matrix's place: the result lies ready."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.result


def twin(model: LlavaLlamaForCausalLM) -> LlavaLlamaForCausalLM:
    """A copy of the model's modules, and of the hooks they have by now, that shares all tensors with it."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def hollow(model: LlavaLlamaForCausalLM, batch: int) -> LlavaLlamaForCausalLM:
    """The model without its large products, for steps of one token: projections and MLPs are `Ready`.

    All else of a step runs as ever, so that what is added to it, a hook, say, is not lost in the noise of a step that
    takes ten times as long. On a CPU it is a lower bound: here no large matrix sweeps the caches before every hook.
    """
    emptied, width = twin(model), model.config.hidden_size
    for layer in emptied.model.layers:
        for name in PROJECTIONS.values():
            features = getattr(layer.self_attn, name).out_features
            setattr(layer.self_attn, name, Ready(torch.randn(batch, 1, features, device=model.device).to(model.dtype)))
        layer.mlp = Ready(torch.randn(batch, 1, width, device=model.device).to(model.dtype))
    return emptied


def low_rank_step(weights: PerceptualWeights, layers: int, positions: int) -> Callable[[], None]:
    """The low-rank products of a forward pass and nothing else: bare calls on tensors that lie ready.

    Per weighted layer `x [A_q | A_k | A_v]`, `x A_o`, `x A_m`, and for every letter `y + low B^T`, in the shapes and
    the precision of the model; A is contiguous here, and the A of q, k and v stand side by side already.
    """
    products = []
    for factors in filter(None, map(weights.of_layer, range(layers))):
        shared = [letter for letter in "qkv" if letter in factors]
        for letters in filter(None, [shared, *([letter] for letter in factors if letter not in shared)]):
            a = torch.cat([factors[letter][0] for letter in letters], dim=-1)
            x = torch.randn(len(a), positions, a.shape[1], device=a.device, dtype=a.dtype)
            outs = [(factors[letter][1].T, x.new_zeros(*x.shape[:2], len(factors[letter][1]))) for letter in letters]
            products.append((x, a, outs))

    @torch.no_grad()
    def step() -> None:
        for x, a, outs in products:
            for low, (b, y) in zip((x @ a).chunk(len(outs), dim=-1), outs):
                y + low @ b

    return step


def measure_hooks(
    args: argparse.Namespace,
    geometry: Geometry,
    model: LlavaLlamaForCausalLM,
    stock: LlavaLlamaForCausalLM,
    connector: nn.Module,
) -> list[dict[str, Any]]:
    """Decode steps with and without weights, and the low-rank products alone, per batch size.

    Args:
        stock: `twin(model)` from before the first weights came: it has no hooks.
    """
    results = []
    for batch in args.batches:
        prompt = Prompt.random(geometry, batch, args.text_tokens[-1], args.device, model.dtype)
        state = start(model, connector, prompt)
        place = (state.cache, state.mask)
        runs: dict[str, Callable[[], Any]] = {
            "stock": decode_step(stock, *place),
            "idle": decode_step(model, *place),
            "bound": decode_step(model, *place, state.weights),
            "products": low_rank_step(state.weights, geometry.llm.layers, positions=1),
            "hollow": decode_step(hollow(stock, batch), *place),
            "hollow bound": decode_step(hollow(stock, batch), *place, state.weights),
        }
        times = interleaved_times(runs, 40 * args.rounds, args.device)
        rounds = [dict(zip(times, seconds)) for seconds in zip(*times.values())]
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        extra = [t["hollow bound"] - t["hollow"] - t["products"] for t in rounds]
        results.append(
            {
                "batch": batch,
                "rounds": len(rounds),
                **medians,
                "idle_share": statistics.quantiles([t["idle"] / t["stock"] - 1 for t in rounds], n=4),
                "overhead": statistics.quantiles(
                    [(t["bound"] - t["stock"] - t["products"]) / t["stock"] for t in rounds], n=4
                ),
                "hollow_overhead": statistics.quantiles([seconds / medians["stock"] for seconds in extra], n=4),
            }
        )
    return results


def hooks_table(results: list[dict[str, Any]]) -> str:
    """Medians, and the overheads with their quartiles."""

    def spread(quartiles: list[float]) -> str:
        low, middle, high = (f"{100 * share:.1f}" for share in quartiles)
        return f"{middle} % ({low} to {high})"

    header = ["decode step, ms", "without hooks", "nothing bound", "weights bound", "products alone"]
    rows = [
        [f"batch {r['batch']}", *(f"{1e3 * r[name]:.2f}" for name in ("stock", "idle", "bound", "products"))]
        for r in results
    ]
    times = markdown_table(header, rows)
    header = ["in percent of the step without hooks", "nothing bound", "hooks beyond the products"]
    header += ["the same, all but the large products running"]
    rows = [
        [f"batch {r['batch']}", *(spread(r[name]) for name in ("idle_share", "overhead", "hollow_overhead"))]
        for r in results
    ]
    return f"{times}\n\n{markdown_table(header, rows)}"
