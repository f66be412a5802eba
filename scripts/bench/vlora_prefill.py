"""Prefill and decode of `vlora.py`'s benchmark: images as weights against images as tokens."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import interleaved_medians, markdown_table, peak_bytes_above, peak_flops, random_images
from stage1_model import Geometry
from torch import nn
from transformers import Cache

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaLlamaForCausalLM
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.perceptual_weights import PerceptualWeights
from llava.model.splice import LanguageInputs
from llava.tools.cost import BASELINE, Cost


@dataclass(frozen=True)
class Prompt:
    """`text_tokens` random tokens in every row, an image behind the first."""

    input_ids: torch.Tensor
    images: torch.Tensor

    @classmethod
    def random(cls, geometry: Geometry, batch: int, text_tokens: int, device: str, dtype: torch.dtype) -> "Prompt":
        text = torch.randint(geometry.llm.vocab_size, (batch, text_tokens), device=device)
        marker = text.new_full((batch, 1), IMAGE_TOKEN_INDEX)
        input_ids = torch.cat([text[:, :1], marker, text[:, 1:]], dim=1)
        return cls(input_ids, random_images(geometry.vision, batch, device, dtype))


@dataclass(frozen=True)
class Started:
    """What decoding goes on from."""

    cache: Cache
    mask: torch.Tensor
    weights: PerceptualWeights | None


@torch.no_grad()
def start(model: LlavaLlamaForCausalLM, connector: nn.Module, prompt: Prompt) -> Started:
    """Everything up to the first token's logits, as `generate` does it: tower, connector, language model with cache."""
    model.model.mm_projector = connector
    text = LanguageInputs(prompt.input_ids, torch.ones_like(prompt.input_ids))
    batch = model.assemble_inputs(text, ImageInputs.given(prompt.images))
    embeds = batch.inputs_embeds
    output = model(
        inputs_embeds=model.get_input_embeddings()(batch.input_ids) if embeds is None else embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        perceptual_weights=batch.weights,
        use_cache=True,
        logits_to_keep=1,
    )
    return Started(output.past_key_values, batch.attention_mask, batch.weights)


def decode_step(
    model: LlavaLlamaForCausalLM,
    cache: Cache,
    mask: torch.Tensor,
    weights: PerceptualWeights | None = None,
    connector: nn.Module | None = None,
) -> Callable[[], None]:
    """One token for every row behind `cache`, which is left as it was.

    Args:
        mask: `[B, n]` of the positions in the cache.
        connector: give the model this one first, as `start` does.
    """
    tokens = torch.ones(len(mask), 1, dtype=torch.long, device=mask.device)
    bound = None if weights is None else weights.bind(model.dtype)  # once for all steps, as `generate` does
    longer = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)

    @torch.no_grad()
    def step() -> None:
        if connector is not None:
            model.model.mm_projector = connector
        model(tokens, attention_mask=longer, past_key_values=cache, perceptual_weights=bound, use_cache=True)
        cache.crop(-1)

    return step


def cache_bytes(cache: Cache) -> int:
    """Bytes of all keys and values that the cache holds."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def measure(
    args: argparse.Namespace, geometry: Geometry, model: LlavaLlamaForCausalLM, connectors: dict[str, nn.Module]
) -> list[dict[str, Any]]:
    """Prefill, decode and memory of every connector, the baseline first, per batch size and number of text tokens."""
    results = []
    for batch in args.batches:
        for text_tokens in args.text_tokens:
            prompt = Prompt.random(geometry, batch, text_tokens, args.device, model.dtype)
            results += measure_prompt(args, geometry, model, connectors, prompt)
    return results


def measure_prompt(
    args: argparse.Namespace,
    geometry: Geometry,
    model: LlavaLlamaForCausalLM,
    connectors: dict[str, nn.Module],
    prompt: Prompt,
) -> list[dict[str, Any]]:
    """The figures of one prompt."""

    @torch.no_grad()
    def see(connector: nn.Module) -> None:
        model.model.mm_projector = connector
        model.encode_images(prompt.images)

    prefills: dict[str, Callable[[], Any]] = {n: lambda c=c: start(model, c, prompt) for n, c in connectors.items()}
    sights: dict[str, Callable[[], Any]] = {f"{n} seen": lambda c=c: see(c) for n, c in connectors.items()}
    side = 64 if args.quick else 4096 if args.device.startswith("cuda") else 1024
    matrix = torch.randn(side, side, device=args.device).to(model.dtype)
    yardstick = {"matmul": lambda: matrix @ matrix}
    seconds = interleaved_medians(prefills | sights | yardstick, args.rounds, args.device)
    started = {name: start(model, connector, prompt) for name, connector in connectors.items()}
    steps = {n: decode_step(model, s.cache, s.mask, s.weights, connectors[n]) for n, s in started.items()}
    step_seconds = interleaved_medians(steps, 4 * args.rounds, args.device)

    batch, text_tokens = len(prompt.images), prompt.input_ids.shape[1] - 1
    shapes = (geometry.llm, geometry.vision, geometry.resampler, geometry.generator)
    results = []
    for name, connector in connectors.items():
        model.model.mm_projector = connector
        cost = Cost(name, model.num_visual_tokens, text_tokens, *shapes)
        state, positions = started[name], started[name].cache.get_seq_length()
        stored = cache_bytes(state.cache)
        inputs = {} if state.weights is None else state.weights.inputs
        result = {
            "connector": name,
            "batch": batch,
            "text_tokens": text_tokens,
            "prefill": seconds[name],
            "seen": seconds[f"{name} seen"],
            "flops": batch * cost.prefill_flops,
            "llm_flops": batch * cost.llm_flops(logits=1),
            "decode": step_seconds[name],
            "cache_bytes": stored,
            "image_cache_bytes": stored // batch * (positions - text_tokens) // positions,
            "image_weight_bytes": sum(a.nbytes for a in inputs.values()) // batch,
            "matmul_flops": 2 * side**3 / seconds["matmul"],  # FLOP/s of a matrix product in the same rounds
            "peak_bytes": None,
        }
        result["llm"] = result["prefill"] - result["seen"]
        if args.device.startswith("cuda"):
            result["peak_bytes"] = peak_bytes_above(args.device, prefills[name])
        results.append(result)
    for result in results:
        for key in ("prefill", "llm", "flops", "llm_flops", "decode"):
            result[f"{key}_ratio"] = results[0][key] / result[key]
    return results


def _label(result: dict[str, Any]) -> str:
    return f"{result['connector']}, {result['text_tokens']} text, batch {result['batch']}"


def prefill_table(args: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """Times to the first token's logits."""
    header = ["time to the first token", "in all, ms", "tower + connector, ms", "speed-up", "arithmetic allows"]
    header += ["language model alone", "arithmetic allows", "MFU", "peak, MiB"]
    rows = [
        [
            _label(r),
            f"{1e3 * r['prefill']:,.1f}",
            f"{1e3 * r['seen']:,.1f}",
            f"{r['prefill_ratio']:.2f}x",
            f"{r['flops_ratio']:.2f}x",
            f"{r['llm_ratio']:.2f}x",
            f"{r['llm_flops_ratio']:.2f}x",
            f"{r['flops'] / r['prefill'] / peak_flops(args, r['matmul_flops'], args.peak_tflops)[0]:.0%}",
            "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.0f}",
        ]
        for r in results
    ]
    return markdown_table(header, rows)


def decode_table(results: list[dict[str, Any]]) -> str:
    """Times per token behind these prompts, and what is kept meanwhile."""
    header = ["decode", "token, ms", f"{BASELINE} / it", "cache in all, MiB", "of it one image's, MiB"]
    header += ["one image's weights, MiB"]
    rows = [
        [
            _label(r),
            f"{1e3 * r['decode']:,.2f}",
            f"{r['decode_ratio']:.2f}x",
            f"{r['cache_bytes'] / 2**20:,.2f}",
            f"{r['image_cache_bytes'] / 2**20:,.3f}",
            f"{r['image_weight_bytes'] / 2**20:,.3f}" if r["image_weight_bytes"] else "-",
        ]
        for r in results
    ]
    return markdown_table(header, rows)
