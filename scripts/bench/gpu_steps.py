"""Training steps of both stages in `gpu.py`, padded and packed: time, tokens per second, MFU, memory, synchronisation.

As `llava.train` runs on one GPU without DeepSpeed: what trains is float32 under bf16 autocast, what is frozen is bf16.
Plans are made on the host, and the loss is computed at labels only. Random weights, samples with the lengths of
captions in stage 1 and of instruction data in stage 2.
"""

import statistics
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table, synchronize
from gpu_bench import Figures, Part, Run, gibibytes, milliseconds
from gpu_results import Item
from packing import LIMIT, Conversations
from stage1_model import Geometry, build_connector, build_model

from llava.model import LlavaLlamaForCausalLM
from llava.model.planned_attention import PLANNED_FLASH, PLANNED_SDPA
from llava.model.sequence_plan import SequencePlan
from llava.tools.connector_costs import makes_weights
from llava.tools.cost import Cost
from llava.tools.flops import llm_forward_flops, low_rank_flops
from llava.train.attention import fastest_attention
from llava.train.packing import PackSampler
from llava.train.planning import BatchLayout, PlanningCollator
from llava.train.sampler import LengthGroupedSampler

BATCH = {1: 16, 2: 8}  # samples of a padded step; packed steps hold about as many
CASES = [("mlp2x_gelu", 576), ("acformer", 65), ("acformer", 145), ("acformer", 257), ("pooling", 145), ("vlora", 0)]
TOY_CASES = [("acformer", 17), ("vlora", 0)]
WARM_UP, TIMED = 2, 5


class Captions(Conversations):
    """Samples as in stage 1: an image each, and a caption of log-normal length, median 24 tokens."""

    def __init__(self, count: int, vocabulary: int, side: int, seed: int) -> None:
        super().__init__(count, vocabulary, side, seed)
        generator = np.random.default_rng(seed)
        self.with_image = np.ones(count, dtype=bool)
        self.texts = np.clip(np.exp(generator.normal(np.log(24), 0.4, count)).astype(int), 8, 256)


@dataclass(frozen=True)
class Case:
    """One training step to measure."""

    stage: int
    connector: str
    tokens: int
    packed: bool

    @property
    def name(self) -> str:
        return f"stage {self.stage}, {self.connector} {self.tokens}, {'packed' if self.packed else 'padded'}"


def items(run: Run) -> list[Item]:
    """Both stages, every connector, padded and packed."""
    cases = [
        Case(stage, name, tokens, packed)
        for stage in BATCH
        for name, tokens in (TOY_CASES if run.is_rehearsal else CASES)
        for packed in (False, True)
    ]
    return [Item(case.name, partial(measure, run, case)) for case in cases]


def measure(run: Run, case: Case) -> dict[str, Any]:
    """The figures of one case."""
    rounds = (1, 2) if run.is_rehearsal else (WARM_UP, TIMED)
    skeleton = connected(run, case, run.geometry(), "meta")
    batches = make_batches(run, case, skeleton, sum(rounds))
    positions = max(batch["plan"].num_positions for batch in batches)
    run.models.clear()
    fit = Fit.choose(run, case, skeleton, positions)
    model = connected(run, case, run.geometry(fit.layers), run.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if not fit.recomputes:
        model.gradient_checkpointing_disable()
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    if run.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed_step(run, model, optimizer, batch) for batch in batches][rounds[0] :]
    timed = [batch["plan"] for batch in batches[rounds[0] :]]
    tokens, flops = sum(plan.num_tokens for plan in timed), sum(needed_flops(run, case, fit.layers, p) for p in timed)
    return {
        "step_seconds": statistics.median(seconds),
        "samples_per_step": sum(len(plan.lengths) for plan in timed) / len(timed),
        "samples_per_second": sum(len(plan.lengths) for plan in timed) / sum(seconds),
        "tokens_per_second": tokens / sum(seconds),
        "padding": 1 - tokens / sum(plan.num_positions for plan in timed),
        "limit_seconds": flops / run.limits.flops / len(timed),
        "mfu": flops / run.limits.flops / sum(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() if run.on_gpu else None,
        "layers": fit.layers,
        "recomputes": fit.recomputes,
        "synchronises": synchronisation(run, model, batches[0]),
    }


def connected(run: Run, case: Case, geometry: Geometry, device: str) -> LlavaLlamaForCausalLM:
    """A model for the stage of the case, all its parameters still in the precision of what is frozen."""
    model = build_model(geometry, device, run.dtype, "sdpa")
    has_flash = run.on_gpu and fastest_attention() == "flash_attention_2"
    model.set_attn_implementation(PLANNED_FLASH if has_flash else PLANNED_SDPA)
    model.model.mm_projector = build_connector(model, case.connector, case.tokens, run.dtype)
    model.requires_grad_(case.stage == 2)
    model.get_vision_tower().requires_grad_(False)
    model.model.mm_projector.requires_grad_(True)
    return model


def make_batches(run: Run, case: Case, model: LlavaLlamaForCausalLM, count: int) -> list[dict[str, Any]]:
    """The batches of `count` steps, on the host."""
    data_class = Captions if case.stage == 1 else Conversations
    side, vocabulary = model.get_vision_tower().config.image_size, model.config.vocab_size
    data = data_class(200 if run.is_rehearsal else 4000, vocabulary, side, run.args.seed)
    layout = BatchLayout(model.space, model.num_visual_tokens, LIMIT, packed=case.packed, chunked_loss=True)
    lengths, batch = data.lengths(layout), 2 if run.is_rehearsal else BATCH[case.stage]
    if case.packed:
        rows = max(round(batch * lengths.mean() / LIMIT), 1)
        capacity = max(min(int(batch * lengths.mean()), LIMIT), int(lengths.max()))
        packs = [pack.indices for pack in PackSampler({None: lengths}, capacity, rows, data.with_image)]
        steps = [[i for pack in packs[start : start + rows] for i in pack] for start in range(0, len(packs), rows)]
    else:
        order = list(LengthGroupedSampler(batch, 1, data.modality_lengths, group_by_modality=True))
        steps = [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]
    chosen = [steps[number * len(steps) // count] for number in range(count)]
    collate = PlanningCollator(layout)
    return [collate([data[index] for index in step]) for step in chosen]


@dataclass(frozen=True)
class Fit:
    """How a case is run in the memory there is: `layers` of the language model, with recomputation or without."""

    layers: int
    recomputes: bool

    @classmethod
    def choose(cls, run: Run, case: Case, model: LlavaLlamaForCausalLM, positions: int) -> "Fit":
        """All layers if they fit, without recomputation if that fits; else as many layers as do.

        Args:
            model: the whole one on `meta`.
            positions: of the largest batch.
        """
        most = run.geometry().llm.layers
        if not run.on_gpu:
            return cls(most, case.stage == 2)
        free = 0.92 * torch.cuda.mem_get_info()[0]
        wholes = [cls(most, False), cls(most, True)] if case.stage == 1 else [cls(most, True)]
        step = run.geometry().generator.skip if makes_weights(case.connector) else 1
        fewer = [cls(layers, True) for layers in range(most - step, 0, -step)]
        for fit in wholes + fewer:
            if needed_bytes(run, case, model, positions, fit) < free:
                return fit
        return cls(step, True)


def needed_bytes(run: Run, case: Case, model: LlavaLlamaForCausalLM, positions: int, fit: Fit) -> float:
    """An estimate, on the safe side, that decides about the number of layers and nothing else.

    What trains takes 16 bytes a parameter: float32 weight, gradient and AdamW's two. Autocast makes bf16 copies, which
    are gone before all gradients are there. A frozen layer keeps 33 bytes per position and unit of width, a trained one
    twice that; with recomputation every layer keeps its input and one layer the rest.
    """
    llm = run.geometry().llm
    share = fit.layers / llm.layers
    trained = frozen = 0.0
    in_layers = {id(parameter) for parameter in model.model.layers.parameters()}
    for parameter in model.parameters():
        size = parameter.numel() * (share if id(parameter) in in_layers else 1)
        trained, frozen = trained + size * parameter.requires_grad, frozen + size * (not parameter.requires_grad)
    kept = 33 * llm.hidden_size * positions * (2 if case.stage == 2 else 1)
    inputs = (4 if case.stage == 2 else 2) * llm.hidden_size * positions
    activations = fit.layers * inputs + kept if fit.recomputes else fit.layers * kept
    return 16 * trained + 2 * frozen + activations + 6 * 2**30


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def timed_step(
    run: Run, model: LlavaLlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: dict[str, Any]
) -> float:
    """Seconds of one step, copies to the device and optimizer included."""
    synchronize(run.device)
    start = time.perf_counter()
    forward_backward(run, model, to_device(batch, run.device))
    optimizer.step()
    optimizer.zero_grad()
    synchronize(run.device)
    return time.perf_counter() - start


def forward_backward(run: Run, model: LlavaLlamaForCausalLM, batch: dict[str, Any]) -> None:
    with torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=run.on_gpu):
        loss = model(**batch).loss
    loss.backward()


def synchronisation(run: Run, model: LlavaLlamaForCausalLM, batch: dict[str, Any]) -> str | None:
    """Whether forward and backward pass wait for the device: "no", or what does; None on a CPU."""
    if not run.on_gpu:
        return None
    on_device = to_device(batch, run.device)
    synchronize(run.device)
    try:
        with no_synchronisation():
            forward_backward(run, model, on_device)
        return "no"
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{str(error).splitlines()[0]} ({Path(place.filename).name}:{place.lineno})"
    finally:
        model.zero_grad()


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Operations that wait for the device raise RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def needed_flops(run: Run, case: Case, layers: int, plan: SequencePlan) -> int:
    """FLOPs that a step needs, without padding and recomputation, logits of labels only."""
    geometry = run.geometry(layers)
    llm = geometry.llm
    cost = Cost(case.connector, case.tokens, 0, llm, geometry.vision, geometry.resampler, geometry.generator)
    forward = sum(llm_forward_flops(llm, length, logits=0) for length in plan.lengths)
    forward += 2 * len(plan.loss.targets) * llm.hidden_size * llm.vocab_size
    if plan.weights is None:
        images = len(plan.visual_places) // case.tokens
    else:
        images = plan.weights.count
        forward += low_rank_flops(llm, weighted_positions(plan), geometry.generator)
    passes = 2 if case.stage == 1 else 3
    return passes * forward + images * (cost.tower_flops + 3 * cost.connector_flops)


def weighted_positions(plan: SequencePlan) -> int:
    """Positions of the sequences that have perceptual weights."""
    if plan.weights.lengths is not None:
        return sum(plan.weights.lengths)
    rows = range(len(plan.lengths)) if plan.weights.rows is None else plan.weights.rows.tolist()
    return sum(plan.lengths[row] for row in rows)


def report(run: Run, figures: Figures) -> str:
    """One table of both stages."""
    header = ["step", "layers", "recomputes", "samples", "ms", "limit, ms", "samples/s", "tokens/s", "padding", "MFU"]
    header += ["peak, GiB", "waits"]
    rows = [
        [
            name,
            str(f["layers"]),
            "yes" if f["recomputes"] else "no",
            f"{f['samples_per_step']:.1f}",
            milliseconds(f["step_seconds"]),
            milliseconds(f["limit_seconds"]),
            f"{f['samples_per_second']:,.1f}",
            f"{f['tokens_per_second']:,.0f}",
            f"{f['padding']:.0%}",
            f"{f['mfu']:.1%}",
            gibibytes(f["peak_bytes"]),
            f["synchronises"] or "-",
        ]
        for name, f in figures.items()
    ]
    most = run.geometry().llm.layers
    text = markdown_table(header, rows)
    text += (
        f"\n\nMedians of steps on different batches, with {WARM_UP} warm-up and {TIMED} timed steps each. What trains "
        "is float32 under bf16 autocast with AdamW, what is frozen bf16. The limit is the time that the step's FLOPs "
        "without padding and recomputation take at the GPU's peak; MFU is the share of it. `waits`: whether forward "
        "and backward pass wait for the device anywhere."
    )
    fewer = [name for name, f in figures.items() if f["layers"] < most]
    if fewer:
        text += (
            f" With fewer than {most} layers, since the GPU's memory holds no more; nothing is extrapolated, and their "
            f"times do not compare with those of other depths: {'; '.join(fewer)}."
        )
    return text


PART = Part("steps", "Training steps", items, report)
