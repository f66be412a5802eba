"""Anchor search, prefill and decode, and the serving engine in `gpu.py`."""

from functools import partial
from typing import Any

import torch
import vlora_prefill
from anchors import random_attention, search, tower_around
from common import markdown_table, random_clip, random_images
from gpu_bench import Figures, Part, Run, median_seconds, milliseconds
from gpu_cases import connectors
from gpu_results import Item
from serving import TOKENIZER
from serving_load import endless, engine_settings, measure, serve_by_engine
from stage1_model import build_connector, build_model

from llava.model import LlavaLlamaForCausalLM
from llava.model.multimodal_projector.visual_anchors import select_visual_anchors
from llava.serve.engine.engine import Engine
from llava.serve.engine.kv_slots import slot_length
from llava.tokenization import load_tokenizer
from llava.tools.flops import LLMShape, vit_flops

TEXT = 64  # text tokens beside an image
REPLY = 48  # new tokens of a served reply
PREFILL_CHUNK = 512  # prompt tokens between two tokens of running replies


def language_model(run: Run) -> LlavaLlamaForCausalLM:
    """The model of prefill, decode and serving, built once."""
    return run.models.get("inference", lambda: build_model(run.geometry(), run.device, run.dtype, "sdpa").eval())


def weight_bytes(run: Run) -> int:
    """Bytes of the language model that every decoding step reads: all layers and the output layer."""
    llm = run.geometry().llm
    return (llm.layer_weights + llm.hidden_size * llm.vocab_size) * run.dtype.itemsize


def anchor_items(run: Run) -> list[Item]:
    batches = [2] if run.is_rehearsal else [1, 16, 64]
    return [Item(f"batch {batch}", partial(measure_anchors, run, batch)) for batch in batches]


@torch.no_grad()
def measure_anchors(run: Run, batch: int) -> dict[str, Any]:
    """The tower alone, with the search for anchors, and the selection alone."""
    vision = run.geometry().vision
    anchors = 16 if run.is_rehearsal else 144
    run.models.clear()
    tower = tower_around(random_clip(vision, "sdpa", run.device, run.dtype), vision)
    images = random_images(vision, batch, run.device, run.dtype)
    attention = random_attention(batch, vision, run.device)
    rounds = 1 if run.is_rehearsal else 20
    alone = median_seconds(lambda: tower.encode(images), rounds, run.device)
    with_search = median_seconds(lambda: search(tower, images, anchors), rounds, run.device)
    selection = median_seconds(lambda: select_visual_anchors(attention, anchors), rounds, run.device)
    return {
        "tower_seconds": alone,
        "search_seconds": with_search,
        "selection_seconds": selection,
        "share": with_search / alone - 1,
        "limit_seconds": batch * vit_flops(vision.blocks - 1, vision) / run.limits.flops,
    }


def anchor_report(run: Run, figures: Figures) -> str:
    header = ["images", "tower, ms", "limit, ms", "with anchor search, ms", "more", "selection alone, ms"]
    rows = [
        [
            name,
            milliseconds(f["tower_seconds"]),
            milliseconds(f["limit_seconds"]),
            milliseconds(f["search_seconds"]),
            f"{f['share']:.1%}",
            milliseconds(f["selection_seconds"]),
        ]
        for name, f in figures.items()
    ]
    return markdown_table(header, rows) + "\n\nThe limit is the tower's FLOPs at the GPU's peak."


def decode_items(run: Run) -> list[Item]:
    batches = [2] if run.is_rehearsal else [1, 16]
    return [
        Item(f"{name} {tokens}, batch {batch}", partial(measure_decode, run, name, tokens, batch))
        for batch in batches
        for name, tokens in connectors(run)
    ]


def measure_decode(run: Run, name: str, tokens: int, batch: int) -> dict[str, Any]:
    """Time to the first token, and time of a decoding step behind it."""
    model, geometry = language_model(run), run.geometry()
    connector = build_connector(model, name, tokens, run.dtype).eval()
    prompt = vlora_prefill.Prompt.random(geometry, batch, TEXT, run.device, run.dtype)
    (found,) = vlora_prefill.measure_prompt(run.args, geometry, model, {name: connector}, prompt)
    read = weight_bytes(run) + found["cache_bytes"] + batch * found["image_weight_bytes"]
    return {
        "prefill_seconds": found["prefill"],
        "prefill_limit_seconds": found["flops"] / run.limits.flops,
        "prefill_tokens_per_second": batch * (max(tokens, 1) + TEXT) / found["prefill"],
        "decode_seconds": found["decode"],
        "decode_limit_seconds": read / run.limits.bandwidth,
        "decode_tokens_per_second": batch / found["decode"],
        "cache_bytes": found["cache_bytes"],
        "peak_bytes": found["peak_bytes"],
    }


def decode_report(run: Run, figures: Figures) -> str:
    header = ["prompt", "prefill, ms", "limit, ms", "tokens/s", "decode, ms", "limit, ms", "tokens/s", "cache, MiB"]
    rows = [
        [
            name,
            milliseconds(f["prefill_seconds"]),
            milliseconds(f["prefill_limit_seconds"]),
            f"{f['prefill_tokens_per_second']:,.0f}",
            milliseconds(f["decode_seconds"]),
            milliseconds(f["decode_limit_seconds"]),
            f"{f['decode_tokens_per_second']:,.1f}",
            f"{f['cache_bytes'] / 2**20:,.1f}",
        ]
        for name, f in figures.items()
    ]
    return (
        f"{markdown_table(header, rows)}\n\nOne image and {TEXT} text tokens; prefill includes tower and connector. "
        "Limits: FLOPs at the GPU's peak for prefill; for decode, the bytes of weights and cache at the bandwidth of a "
        "copy."
    )


def serving_items(run: Run) -> list[Item]:
    prompts, streams = ([8], [1, 3]) if run.is_rehearsal else ([TEXT, TEXT + 145, TEXT + 576], [1, 16, 64])
    return [
        Item(f"{count} x {prompt} tokens", partial(measure_serving, run, prompt, count))
        for count in streams
        for prompt in prompts
    ]


def measure_serving(run: Run, prompt_tokens: int, streams: int) -> dict[str, Any]:
    """One burst: all requests arrive at once and stream to their end."""
    model, llm = language_model(run), run.geometry().llm
    endless(model)
    reply = 4 if run.is_rehearsal else REPLY
    cache = streams * slot_length(prompt_tokens + reply) * position_bytes(run, llm)
    engine = Engine(model, load_tokenizer(str(TOKENIZER)), None, engine_settings(streams, cache, PREFILL_CHUNK))
    generator = torch.Generator().manual_seed(run.args.seed)
    prompts = torch.randint(3, llm.vocab_size, (streams, prompt_tokens), generator=generator).tolist()
    try:
        serve = serve_by_engine(engine)
        serve(prompts, 2)
        figures = measure(serve, prompts, reply)
    finally:
        engine.close()
    context = prompt_tokens + reply / 2
    read = weight_bytes(run) + streams * context * position_bytes(run, llm)
    return figures | {"limit_tokens_per_second": streams * run.limits.bandwidth / read}


def position_bytes(run: Run, llm: LLMShape) -> int:
    """Keys and values of one position in all layers."""
    return 2 * llm.layers * llm.kv_heads * llm.head_dim * run.dtype.itemsize


def serving_report(run: Run, figures: Figures) -> str:
    times = ("first_p50", "first_p95", "gap_p50", "gap_p95")
    header = ["requests", "tokens/s", "limit", "first token p50, ms", "p95", "between p50, ms", "p95"]
    rows = [
        [
            name,
            f"{f['tokens_per_second']:,.0f}",
            f"{f['limit_tokens_per_second']:,.0f}",
            *(milliseconds(f[key]) for key in times),
        ]
        for name, f in figures.items()
    ]
    return (
        f"{markdown_table(header, rows)}\n\n{REPLY} new tokens each, after prompts of {TEXT} tokens, and of {TEXT} and "
        "the positions of 145 and 576 visual tokens. *Between*: two tokens of one reply. The limit counts decoding "
        "alone, weights and caches read at the bandwidth of a copy; what prefill takes is not in it."
    )


ANCHORS = Part("anchors", "Anchor search", anchor_items, anchor_report)
DECODE = Part("decode", "Prefill and decode", decode_items, decode_report)
SERVING = Part("serving", "Serving engine", serving_items, serving_report)
