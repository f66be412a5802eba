"""The memory model of `python -m llava.tools.fit` against real training steps.

    python scripts/bench/fit_memory.py
    python scripts/bench/fit_memory.py --markdown docs/benchmarks/fit_memory.md --json docs/benchmarks/fit_memory.json

Every row is one step - forward, backward, AdamW - of a small model on the CPU. `measured` is the most bytes that were
alive at once in tensors, weights and optimizer states included; `computed` is what the memory model says from the
sizes alone. Activations are compared, too: both numbers without weights, gradients and optimizer states.
"""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import add_common_flags, markdown_table, publish, random_images
from stage1_model import Geometry, build_connector, build_model
from torch import nn

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaLlamaForCausalLM
from llava.model.planned_attention import PLANNED_SDPA
from llava.tools.fitting.decoder import DecoderMemory, LoraShape
from llava.tools.fitting.memory import StepMemory, mask_bytes, step_memory
from llava.tools.fitting.parameters import count_parameters, trace_on_meta
from llava.tools.fitting.states import Engine, States
from llava.tools.fitting.storages import LiveStorages
from llava.tools.flops import GeneratorShape, LLMShape, ResamplerShape, VisionShape
from llava.train.planning import BatchLayout, PlanningCollator

GEOMETRY = Geometry(
    LLMShape(128, 4, 344, 512, heads=4, kv_heads=4, head_dim=32),
    VisionShape(width=64, blocks=3, heads=4, side=8, patch_values=4 * 4 * 3),
    ResamplerShape(depth=2, heads=4, dim_head=16),
    GeneratorShape(width=32, depth=2, rank=8, skip=2),
    generator_heads=4,
)
GROUPED = replace(GEOMETRY, llm=replace(GEOMETRY.llm, kv_heads=2))
# Wider and deeper, to see that nothing depends on the size.
LARGER = Geometry(
    LLMShape(512, 8, 1376, 2048, heads=8, kv_heads=8, head_dim=64),
    VisionShape(width=256, blocks=4, heads=4, side=12, patch_values=4 * 4 * 3),
    ResamplerShape(depth=3, heads=4, dim_head=32),
    GeneratorShape(width=64, depth=2, rank=16, skip=4),
    generator_heads=4,
)
LORA_TARGETS = r".*layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"
NOT_LORA = r".*(vision_tower|mm_projector).*"


@dataclass(frozen=True)
class Case:
    """One configuration of training.

    Attributes:
        stage: `1` trains the connector, `2` everything but the tower, `lora` adapters and the connector.
    """

    connector: str
    stage: str
    recomputes: bool
    dtype: torch.dtype = torch.float32
    tokens: int = 17
    batch: int = 4
    text: int = 96
    dropout: float = 0.05
    geometry: Geometry = GEOMETRY
    pads: bool = False
    packs: bool = False
    chunks: bool = False
    note: str = ""

    def __str__(self) -> str:
        mode = {"1": "stage 1", "2": "stage 2", "lora": "LoRA"}[self.stage]
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.connector}, {mode}, {'recomputed' if self.recomputes else 'kept'}, {kind}{self.note}"


CASES = [
    *(
        Case(connector, stage, recomputes)
        for connector in ("mlp2x_gelu", "acformer", "vlora")
        for stage in ("1", "2", "lora")
        for recomputes in (False, True)
    ),
    *(Case(name, stage, True) for name in ("c_abstractor", "visionzip", "acformer_vlora") for stage in ("1", "2")),
    Case("acformer", "lora", False, dropout=0.0, note=", no dropout"),
    *(
        Case("mlp2x_gelu", stage, recomputes, pads=True, note=", padded")
        for stage in "12"
        for recomputes in (False, True)
    ),
    *(
        Case(connector, stage, recomputes, packs=True, note=", packed")
        for connector in ("acformer", "vlora")
        for stage in "12"
        for recomputes in (False, True)
    ),
    *(Case("mlp2x_gelu", stage, False, chunks=True, note=", loss in chunks") for stage in "12"),
    *(Case("acformer", stage, True, geometry=GROUPED, note=", grouped queries") for stage in "12"),
    *(
        Case(connector, stage, recomputes, geometry=LARGER, note=", larger")
        for connector in ("acformer", "vlora")
        for stage in ("1", "2")
        for recomputes in (False, True)
    ),
    *(Case("acformer", stage, recomputes, torch.bfloat16) for stage in ("1", "2") for recomputes in (False, True)),
]


def build(case: Case) -> nn.Module:
    """The model, with what the stage trains."""
    torch.manual_seed(0)
    model = build_model(case.geometry, "cpu", case.dtype, "sdpa")
    model.config._attn_implementation = PLANNED_SDPA
    connector = build_connector(model, case.connector, case.tokens, case.dtype)
    model.config.mm_projector_type = case.connector
    model.model.mm_projector = connector
    model.model.requires_grad_(case.stage == "2")
    model.lm_head.requires_grad_(case.stage == "2")
    model.get_vision_tower().requires_grad_(False)
    if not case.recomputes:
        model.gradient_checkpointing_disable()
    if case.stage == "lora":
        from peft import LoraConfig, get_peft_model

        options = {"r": 8, "lora_dropout": case.dropout, "target_modules": LORA_TARGETS, "exclude_modules": NOT_LORA}
        model = get_peft_model(model, LoraConfig(**options))
    connector.requires_grad_(True)
    return model


def make_batch(case: Case, model: nn.Module) -> dict[str, Any]:
    """What training's collator gives: a plan, and images."""
    generator = torch.Generator().manual_seed(0)
    llava = model.get_base_model() if case.stage == "lora" else model
    pixels = random_images(case.geometry.vision, case.batch, "cpu", case.dtype)
    items = []
    for row, image in enumerate(pixels):
        length = case.text - 7 * (case.pads and row > 0)
        ids = torch.randint(0, case.geometry.llm.vocab_size, (length,), generator=generator)
        ids[3] = IMAGE_TOKEN_INDEX
        labels = ids.masked_fill(torch.arange(length) < 4, IGNORE_INDEX)
        items.append({"input_ids": ids, "labels": labels, "image": image})
    layout = BatchLayout(
        llava.space, llava.num_visual_tokens, 2048, packed=case.packs, chunked_loss=case.packs or case.chunks
    )
    return PlanningCollator(layout)(items)


def measure(case: Case, model: nn.Module) -> int:
    """The most bytes alive in one step; AdamW has its states before it begins."""
    batch = make_batch(case, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-6)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    with LiveStorages(known=[batch["images"]], counted=[*model.parameters(), *moments]) as storages:
        model(**batch).loss.backward()
        optimizer.step()
    return storages.peak


def compute(case: Case, model: nn.Module) -> StepMemory:
    """What the memory model says."""
    inner: LlavaLlamaForCausalLM = model.get_base_model() if case.stage == "lora" else model
    connector, llm, value = inner.model.mm_projector, case.geometry.llm, case.dtype.itemsize
    parameters = count_parameters(model, value)
    if case.dtype == torch.float32:
        states = Engine(
            1, half=False, zero=None, optimizer="adamw_torch", hidden_size=llm.hidden_size, step="loop"
        ).states(parameters)
    else:  # AdamW on bf16 parameters, which no recipe does
        trained = value * parameters.trained
        states = States(
            weights=trained + parameters.frozen_bytes,
            gradients=trained,
            optimizer=2 * trained,
            buffers=0,
            first_gradients=value * parameters.last,
            late_gradients=value * parameters.late,
            step=2 * value * parameters.largest,
        )
    tower_memory, connector_memory = trace_on_meta(inner.get_vision_tower(), connector, case.batch, case.dtype)
    decoder = DecoderMemory(
        llm,
        value,
        trains=case.stage == "2",
        recomputes=case.recomputes,
        lora=LoraShape(8, case.dropout, mask=value) if case.stage == "lora" else None,
        generator=None if connector.space == "input" else case.geometry.generator,
        packs=case.packs,
    )
    length = case.text - 1 + max(connector.num_visual_tokens, 1)
    own = sum(p.numel() for p in connector.parameters() if p.requires_grad)
    return step_memory(
        states,
        decoder,
        connector_memory,
        tower_memory,
        positions=case.batch * length,
        images=case.batch,
        own_gradients=value * own,
        chunked_loss=case.packs or case.chunks,
        inputs=mask_bytes(case.batch, length, value) if connector.space == "parameter" else 0,
    )


def compare(case: Case) -> dict[str, float | str]:
    """Measured and computed peak, and the share of activations in it."""
    model = build(case)
    computed, measured = compute(case, model), measure(case, model)
    fixed = computed.states.weights + computed.states.optimizer + computed.states.gradients
    return {
        "case": str(case),
        "measured": measured,
        "computed": computed.peak,
        "error": computed.peak / measured - 1,
        "activations_error": (computed.peak - fixed) / max(measured - fixed, 1) - 1,
        "moment": computed.moment,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    args = parser.parse_args()
    figures = [compare(case) for case in (CASES[:2] if args.quick else CASES)]
    header = ["one step", "measured, MB", "computed, MB", "error", "error of activations", "peak at"]
    rows = [
        [
            row["case"],
            f"{row['measured'] / 1e6:.2f}",
            f"{row['computed'] / 1e6:.2f}",
            f"{100 * row['error']:+.1f} %",
            f"{100 * row['activations_error']:+.1f} %",
            row["moment"],
        ]
        for row in figures
    ]
    worst = max(abs(row["error"]) for row in figures)
    body = f"{markdown_table(header, rows)}\n\nLargest error of the peak: {100 * worst:.1f} %."
    publish(args, "The memory model against measured steps", body, {"rows": figures})


if __name__ == "__main__":
    main()
