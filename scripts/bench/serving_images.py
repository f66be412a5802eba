"""Images in `serving.py`: how many requests fit in a cache budget, and the time to the first token, by connector."""

import argparse
import queue
import statistics
import time
from typing import Any

import torch
from common import markdown_table, precision
from PIL import Image
from serving_load import endless, engine_settings
from stage1_model import Geometry, build_connector, build_model
from transformers import CLIPImageProcessor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import GenerationRequest
from llava.serve.engine.images import bytes_of_weights, encode_image, prepare_image
from llava.serve.engine.kv_slots import CacheGeometry, KVSlots, slot_length
from llava.serve.engine.prompts import embed_prompt
from llava.serve.engine.sampling import SamplingSettings
from llava.tools.cost import BASELINE

CONNECTORS = {BASELINE: (BASELINE, 0), "acformer, 145": ("acformer", 145), "acformer, 65": ("acformer", 65),
              "vlora": ("vlora", 0)}  # fmt: skip


def random_image(generator: torch.Generator, side: int) -> Image.Image:
    return Image.fromarray(torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy())


def count_fitting(geometry: CacheGeometry, budget: int, num_tokens: int, weight_bytes: int) -> int:
    """Requests of one kind that run at once, by the engine's own bookkeeping."""
    slots, count = KVSlots(geometry, budget), 0
    while slots.acquire(num_tokens, reserved=count * weight_bytes, own=weight_bytes) is not None:
        count += 1
    return count


def measure(args: argparse.Namespace, geometry: Geometry, tokenizer: Any) -> list[dict[str, Any]]:
    """One row per connector, all on one language model and tower; they take turns."""
    model = build_model(geometry, args.device, precision(args), "sdpa").eval()
    endless(model)
    side = geometry.vision.side * round((geometry.vision.patch_values / 3) ** 0.5)
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    connectors = {
        label: build_connector(model, name, min(tokens, 17) if args.quick else tokens, precision(args)).eval()
        for label, (name, tokens) in CONNECTORS.items()
    }
    generator = torch.Generator().manual_seed(args.seed)
    text = torch.randint(3, geometry.llm.vocab_size, (args.text_tokens,), generator=generator).tolist()
    ids = [1, IMAGE_TOKEN_INDEX, *text]
    cache = CacheGeometry.of_model(model)
    rows: dict[str, dict[str, Any]] = {}
    for label, connector in connectors.items():
        model.model.mm_projector = connector
        encoded = encode_image(model, prepare_image(model, processor, random_image(generator, side)), None)
        prompt = embed_prompt(model, ids, [encoded])
        needed = len(prompt) + args.reply_tokens
        rows[label] = {"connector": label, "positions": needed, "weight_bytes": 2 * bytes_of_weights(encoded.weights)}
        rows[label]["first"] = []
    budget = args.fitting * slot_length(rows[BASELINE]["positions"]) * cache.bytes_per_token
    for row in rows.values():
        row["fitting"] = count_fitting(cache, budget, row["positions"], row["weight_bytes"])
    # The whole budget would be zeros to allocate for one request at a time.
    engine = Engine(model, tokenizer, processor, engine_settings(1, 2**40, args.prefill_chunk))
    for round_number in range(args.rounds + 1):  # the first one warms up
        for label, connector in connectors.items():
            model.model.mm_projector = connector
            ends: queue.Queue[Any] = queue.Queue()
            image, asked = random_image(generator, side), time.perf_counter()
            prepared, taken = engine.prepare(image), time.perf_counter() - asked
            engine.submit(GenerationRequest(ids, 1, (prepared,), SamplingSettings(0.0)), ends.put)
            while (event := ends.get()).finish is None:
                pass
            if event.error is not None:
                raise event.error
            if round_number:
                rows[label]["first"].append(taken + event.usage.time_to_first_token)
    engine.close()
    for row in rows.values():
        row |= {"budget": budget, "first": statistics.median(row["first"])}
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Absolute figures, and ratios to the MLP on all patches."""
    base = rows[0]
    cells = [
        [
            row["connector"],
            str(row["positions"]),
            str(row["fitting"]),
            f"{row['fitting'] / base['fitting']:.1f}x",
            f"{1e3 * row['first']:,.0f}",
            f"{base['first'] / row['first']:.1f}x",
        ]
        for row in rows
    ]
    header = ["connector", "positions", "requests that fit", "more", "first token, ms", "sooner"]
    return markdown_table(header, cells)
