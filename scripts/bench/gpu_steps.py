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
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from common import markdown_table, synchronize
from gpu_bench import Figures, Part, Run, gibibytes, milliseconds
from gpu_cases import BATCH, Case, connectors, make_batches, needed_flops
from gpu_results import Item
from stage1_model import Geometry, build_connector, build_model

from llava.model import LlavaLlamaForCausalLM
from llava.model.planned_attention import PLANNED_FLASH, PLANNED_SDPA
from llava.tools.connector_costs import makes_weights
from llava.train.attention import fastest_attention

WARM_UP, TIMED = 2, 5


def items(run: Run) -> list[Item]:
    """Both stages, every connector, padded and packed."""
    cases = [
        Case(stage, name, tokens, packed)
        for stage in BATCH
        for name, tokens in connectors(run)
        for packed in (False, True)
    ]
    return [Item(case.name, partial(measure, run, case)) for case in cases]


def measure(run: Run, case: Case) -> dict[str, Any]:
    """The figures of one case."""
    rounds = (1, 2) if run.is_rehearsal else (WARM_UP, TIMED)
    skeleton = connected(run, case, run.geometry(), "meta")
    batches = make_batches(run, case, skeleton, sum(rounds))
    other = make_batches(run, replace(case, packed=not case.packed), skeleton, sum(rounds))
    positions = max(batch["plan"].num_positions for batch in batches + other)  # both layouts run at the same depth
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


@cache
def planned_attention() -> str:
    """On FlashAttention's kernels where it is installed, else on torch's."""
    return PLANNED_FLASH if fastest_attention() == "flash_attention_2" else PLANNED_SDPA


def connected(run: Run, case: Case, geometry: Geometry, device: str) -> LlavaLlamaForCausalLM:
    """A model for the stage of the case, all its parameters still in the precision of what is frozen."""
    model = build_model(geometry, device, run.dtype, "sdpa")
    model.set_attn_implementation(planned_attention())
    model.model.mm_projector = build_connector(model, case.connector, case.tokens, run.dtype)
    model.requires_grad_(case.stage == 2)
    model.get_vision_tower().requires_grad_(False)
    model.model.mm_projector.requires_grad_(True)
    return model


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
            positions: of the largest batch in either layout.
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
    with torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=run.dtype == torch.bfloat16):
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
    text = markdown_table(header, rows) + packing_gain(figures)
    text += (
        f"\n\nMedians of steps on different batches, with {WARM_UP} warm-up and {TIMED} timed steps each. What trains "
        f"is float32 under bf16 autocast with AdamW, what is frozen bf16; attention is `{planned_attention()}`. The "
        "limit is the time that the step's FLOPs without padding and recomputation take at the GPU's peak; MFU is the "
        "share of it. `waits`: whether forward and backward pass wait for the device anywhere."
    )
    fewer = [name for name, f in figures.items() if f["layers"] < most]
    if fewer:
        text += (
            f" With fewer than {most} layers, since the GPU's memory holds no more; nothing is extrapolated, and their "
            f"times do not compare with those of other depths: {'; '.join(fewer)}."
        )
    return text


def packing_gain(figures: Figures) -> str:
    """How many more tokens per second packed steps compute, where both layouts are there."""
    rows = []
    for name, padded in figures.items():
        packed = figures.get(name.replace("padded", "packed"))
        if name.endswith("padded") and packed is not None:
            ratio = packed["tokens_per_second"] / padded["tokens_per_second"]
            rows.append([name.removesuffix(", padded"), f"{ratio:.2f}x"])
    return "\n\n" + markdown_table(["packed against padded", "tokens/s"], rows) if rows else ""


PART = Part("steps", "Training steps", items, report)
