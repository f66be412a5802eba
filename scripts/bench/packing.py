"""Stage 2, padded against packed: real samples and tokens per second by the same model, in one run.

    python scripts/bench/packing.py
    python scripts/bench/packing.py --device cuda --geometry 7b --layers 4 --ranks 8

Conversations have log-normal lengths (median 180 tokens, sigma 0.8; 6 % without an image, median 500). The padded side
is LLaVA's sampler, which balances the processes, one sample per row and all logits. The packed side fills rows of 2048
positions, about as many samples per step, and computes logits at labels only. Both include the vision tower, the
backward pass and the optimizer. Processes are run one after the other, and a step lasts as long as its slowest one.
"""

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from common import add_common_flags, markdown_table, precision, publish, synchronize
from stage1_model import GEOMETRIES, build_connector, build_model
from torch.profiler import ProfilerActivity, profile

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.planned_attention import PLANNED_SDPA
from llava.train.packing import PackSampler
from llava.train.planning import BatchLayout, PlanningCollator
from llava.train.sampler import LengthGroupedSampler

BATCH = 16  # samples per process, LLaVA-1.5's
LIMIT = 2048
CONNECTORS = {"mlp2x_gelu": 576, "acformer": 145, "vlora": 0}
LABELLED = 0.5  # share of a text that is an answer


class Conversations:
    """Samples of random ids with the lengths of instruction data."""

    def __init__(self, count: int, vocabulary: int, side: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.with_image = generator.random(count) >= 0.06
        median = np.where(self.with_image, 180, 500)
        texts = np.exp(generator.normal(np.log(median), 0.8)).astype(int)
        self.texts = np.clip(texts, 8, LIMIT - 2)
        self.vocabulary, self.side = vocabulary, side

    def lengths(self, layout: BatchLayout) -> np.ndarray:
        """Positions of every sample in the language model."""
        return np.array(
            [
                layout.sequence_length(int(text) + 1, int(shown))
                for text, shown in zip(self.texts, self.with_image, strict=True)
            ]
        )

    @property
    def modality_lengths(self) -> list[int]:
        """As LLaVA's sampler takes them: of the text, negative without an image."""
        return (self.texts * np.where(self.with_image, 1, -1)).tolist()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, self.vocabulary, (int(self.texts[index]) + 1,))
        ids[0] = 1
        labels = ids.clone()
        labels[: int(len(ids) * (1 - LABELLED))] = IGNORE_INDEX
        if self.with_image[index]:
            ids[1], labels[1] = IMAGE_TOKEN_INDEX, IGNORE_INDEX
        image = torch.randint(0, 256, (3, self.side, self.side), dtype=torch.uint8)
        return {"input_ids": ids, "labels": labels, "image": image}


def padded_steps(data: Conversations, ranks: int) -> Iterator[list[list[int]]]:
    """Per step the samples of every process, by LLaVA's sampler."""
    order = list(LengthGroupedSampler(BATCH, ranks, data.modality_lengths, group_by_modality=True))
    for start in range(0, len(order) - ranks * BATCH + 1, ranks * BATCH):
        yield [order[start + rank * BATCH : start + (rank + 1) * BATCH] for rank in range(ranks)]


def packed_steps(data: Conversations, lengths: np.ndarray, ranks: int) -> Iterator[list[list[int]]]:
    """Per step the samples of every process, in as many rows as hold about `BATCH` samples."""
    rows = max(round(BATCH * lengths.mean() / LIMIT), 1)
    packs = list(PackSampler({None: lengths}, LIMIT, ranks * rows, data.with_image))
    for start in range(0, len(packs) - ranks * rows + 1, ranks * rows):
        step = packs[start : start + ranks * rows]
        of_rank = [step[rank * rows : (rank + 1) * rows] for rank in range(ranks)]
        yield [[index for pack in mine for index in pack.indices] for mine in of_rank]


def padding_of(steps: list[list[list[int]]], lengths: np.ndarray, packed: bool) -> dict[str, float]:
    """Positions computed for each needed, over an epoch: by all processes, and if all wait for the slowest."""
    needed = computed = slowest = 0
    for step in steps:
        per_rank = [int(lengths[mine].sum() if packed else lengths[mine].max() * len(mine)) for mine in step]
        needed += sum(int(lengths[mine].sum()) for mine in step)
        computed += sum(per_rank)
        slowest += max(per_rank) * len(per_rank)
    return {"computed": computed / needed, "slowest": slowest / needed}


def timed_step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any], device: str) -> float:
    """Seconds of one micro-batch with its optimizer step."""
    synchronize(device)
    start = time.perf_counter()
    on_device = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    model(**on_device).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronize(device)
    return time.perf_counter() - start


PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "grouped_mm", "attention", "convolution", "linear", "gemm")


def share_outside_products(step: Callable[[], Any], device: str) -> float:
    """Share of a step's device time that is neither a matrix product nor attention."""
    on_gpu = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    products = sum(time for name, time in times.items() if any(part in name.lower() for part in PRODUCTS))
    return 1 - products / sum(times.values())


def measure(args: argparse.Namespace, name: str, tokens: int) -> dict[str, Any]:
    """Both sides of one connector; their steps take turns."""
    geometry = GEOMETRIES[args.geometry]
    if args.layers:
        geometry = dataclasses.replace(geometry, llm=dataclasses.replace(geometry.llm, layers=args.layers))
    dtype = precision(args)
    model = build_model(geometry, args.device, dtype, "sdpa")
    model.set_attn_implementation(PLANNED_SDPA)
    if not args.device.startswith("cuda"):
        model.gradient_checkpointing_disable()
    model.model.mm_projector = build_connector(model, name, tokens, dtype)
    model.requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    side = model.get_vision_tower().config.image_size
    data = Conversations(args.samples, geometry.llm.vocab_size, side, args.seed)
    rows = BatchLayout(model.space, model.num_visual_tokens, LIMIT)
    packs = dataclasses.replace(rows, packed=True, chunked_loss=True)
    lengths = data.lengths(rows)
    sides = {
        "padded": (rows, list(padded_steps(data, args.ranks))),
        "packed": (packs, list(packed_steps(data, lengths, args.ranks))),
    }
    result: dict[str, Any] = {"connector": name, "tokens": model.num_visual_tokens}
    seconds, samples, positions, outside = (dict.fromkeys(sides, 0.0) for _ in range(4))
    for number in range(args.rounds + 1):
        for kind, (layout, steps) in sides.items():
            step = steps[number * len(steps) // (args.rounds + 1)]
            collate = PlanningCollator(layout)
            batches = [collate([copy.deepcopy(data[index]) for index in mine]) for mine in step]
            slowest = max(timed_step(model, optimizer, batch, args.device) for batch in batches)
            if number == 0:
                again = partial(timed_step, model, optimizer, batches[0], args.device)
                outside[kind] = share_outside_products(again, args.device)
            else:  # the first round warms up
                seconds[kind] += slowest
                samples[kind] += sum(len(mine) for mine in step)
                positions[kind] += sum(int(lengths[mine].sum()) for mine in step)
    for kind, (layout, steps) in sides.items():
        result[kind] = {
            "samples_per_second": samples[kind] / seconds[kind],
            "tokens_per_second": positions[kind] / seconds[kind],
            "samples_per_step": samples[kind] / args.rounds / args.ranks,
            **padding_of(steps, lengths, layout.packed),
            "outside": outside[kind],
        }
    result["ratio"] = result["packed"]["tokens_per_second"] / result["padded"]["tokens_per_second"]
    result["samples_ratio"] = result["packed"]["samples_per_second"] / result["padded"]["samples_per_second"]
    return result


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    header = [
        "connector",
        "visual tokens",
        "layout",
        "samples/step",
        "samples/s",
        "tokens/s",
        "computed",
        "slowest",
        "outside",
    ]
    rows = []
    for result in results:
        for kind in ("padded", "packed"):
            side = result[kind]
            figures = [f"{side['samples_per_step']:.1f}", f"{side['samples_per_second']:,.2f}"]
            figures += [f"{side['tokens_per_second']:,.0f}", f"{side['computed']:.3f}", f"{side['slowest']:.3f}"]
            figures += [f"{side['outside']:.0%}"]
            rows.append([result["connector"], str(result["tokens"]), kind, *figures])
    text = markdown_table(header, rows)
    text += (
        "\n\nSamples per step are one process's. `computed`: positions computed for each that is needed, over an "
        f"epoch; `slowest`: the same if all of {args.ranks} processes wait for the one with the most; `outside`: "
        "share of the time that is neither a matrix product nor attention, under a profiler. A gain beyond that of "
        "`slowest` is attention over long padded rows, whose share is larger in a narrow model than at 7B.\n\n"
    )
    ratios = [[r["connector"], f"{r['ratio']:.2f}x", f"{r['samples_ratio']:.2f}x"] for r in results]
    return text + markdown_table(["packed against padded", "tokens/s", "samples/s"], ratios)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="7b on a GPU, packing elsewhere if not given")
    parser.add_argument("--layers", type=int, help="run only so many layers of the language model")
    parser.add_argument("--ranks", type=int, default=8, help="processes whose steps are run one after the other")
    parser.add_argument("--samples", type=int, default=20000, help="of the epoch that batches are taken from")
    parser.add_argument("--connectors", nargs="+", choices=CONNECTORS, default=list(CONNECTORS))
    args = parser.parse_args()
    args.geometry = args.geometry or ("7b" if args.device.startswith("cuda") else "packing")
    args.rounds = args.rounds or 2
    tokens = CONNECTORS
    if args.quick:
        args.geometry, args.rounds, args.ranks, args.samples = "toy", 1, 1, 200
        tokens = {"mlp2x_gelu": 64, "acformer": 17, "vlora": 0}
    torch.manual_seed(args.seed)
    results = [measure(args, name, tokens[name]) for name in args.connectors]
    publish(
        args, f"Stage-2 step, padded and packed, {args.geometry} geometry", report(args, results), {"results": results}
    )


if __name__ == "__main__":
    main()
