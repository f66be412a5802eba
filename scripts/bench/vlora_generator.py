"""The generator of `vlora.py`'s benchmark: as shipped against the way it is written down."""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved_medians, markdown_table, precision
from stage1_model import Geometry
from torch import nn

from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.tools.flops import generator_flops

State = dict[str, torch.Tensor]


def _part(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _attention(state: State, query: torch.Tensor, memory: torch.Tensor, heads: int) -> torch.Tensor:
    weights, biases = state["in_proj_weight"].chunk(3), state["in_proj_bias"].chunk(3)
    parts = [F.linear(x, weights[i], biases[i]) for i, x in enumerate((query, memory, memory))]
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts)
    return _linear(state, "out_proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _stack(state: State, image: torch.Tensor, heads: int) -> torch.Tensor:
    """One letter's queries `[B, w, in * r]`; every cross-attention projects the image's keys and values itself."""
    query = state["queries"].expand(len(image), -1, -1)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("decoders."))
    for i in range(depth):
        layer = _part(state, f"decoders.{i}.")
        normed = _norm(layer, "norm1", query)
        query = query + _attention(_part(layer, "self_attn."), normed, normed, heads)
        query = query + _attention(_part(layer, "multihead_attn."), _norm(layer, "norm2", query), image, heads)
        query = query + _linear(layer, "linear2", F.gelu(_linear(layer, "linear1", _norm(layer, "norm3", query))))
    return _linear(state, "weights_head", _norm(state, "norm", query))


def generate_plainly(state: State, patches: torch.Tensor, letters: str, heads: int, rank: int) -> State:
    """A `[B, G, in, r]` per letter from patch features `[B, N, Dv]`, stack after stack, layer after layer.

    Args:
        state: the connector's state_dict in the published layout, separate stacks or a joint one.
    """
    image = _linear(state, "visual_proj", patches) + state["pos_embed"]
    if "gen.queries" in state:
        outputs = _stack(_part(state, "gen."), image, heads).unflatten(1, (len(letters), -1)).unbind(1)
    else:
        outputs = [_stack(_part(state, f"gen.{i}."), image, heads) for i in range(len(letters))]
    return {letter: out.unflatten(-1, (-1, rank)) for letter, out in zip(letters, outputs, strict=True)}


@torch.no_grad()
def measure_generator(args: argparse.Namespace, geometry: Geometry, connector: nn.Module) -> list[dict[str, Any]]:
    """Seconds of both per batch size, from the tower's features to A.

    Raises:
        RuntimeError: they do not give the same weights.
    """
    shape, vision, state = geometry.generator, geometry.vision, connector.state_dict()
    results = []
    for batch in args.batches:
        hidden = torch.randn(batch, 1 + vision.patches, vision.width, device=args.device, dtype=precision(args))
        features = VisionFeatures(hidden)

        def plain(hidden: torch.Tensor = hidden) -> State:
            return generate_plainly(state, hidden[:, 1:], shape.letters, geometry.generator_heads, shape.rank)

        ours = connector(features).inputs
        differences = [(ours[t] - a).abs().max() / a.abs().max() for t, a in plain().items()]
        difference = max(differences).item()
        if difference > (1e-4 if precision(args) == torch.float32 else 0.05):
            raise RuntimeError(f"The two generators differ by {difference:.2g} of the largest weight at batch {batch}")
        runs = {"plain": plain, "ours": lambda features=features: connector(features)}
        seconds = interleaved_medians(runs, 4 * args.rounds, args.device)
        flops = batch * generator_flops(geometry.llm, vision, shape)
        results.append({"batch": batch, "flops": flops, "difference": difference, **seconds})
    return results


def generator_table(results: list[dict[str, Any]]) -> str:
    """Both times and what they reach."""
    header = ["generator", "layer by layer, ms", "as shipped, ms", "ratio", "as shipped, GFLOP/s", "difference"]
    rows = [
        [
            f"batch {r['batch']}",
            f"{1e3 * r['plain']:,.2f}",
            f"{1e3 * r['ours']:,.2f}",
            f"{r['plain'] / r['ours']:.2f}x",
            f"{r['flops'] / r['ours'] / 1e9:,.0f}",
            f"{r['difference']:.1e}",
        ]
        for r in results
    ]
    return markdown_table(header, rows)
