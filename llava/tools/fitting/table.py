"""The tables of docs/fit.md: every connector, both sizes, both stages."""

import os
from contextlib import contextmanager

from llava.tools.fitting.plan import GIB, Assumptions, Plan, plan_script

CONNECTORS = [
    ("mlp2x_gelu", 576),
    *(("acformer", tokens) for tokens in (65, 145, 257)),
    *((name, 145) for name in ("pooling", "pooling_pr", "random_pr", "pr", "perceiver", "top_p", "visionzip", "evit")),
    ("c_abstractor", 144),
    ("pixel_shuffle", 144),
    ("vlora", 0),
    ("acformer_vlora", 145),
]
# The recipe of the VLoRA scripts, for the connector that has both.
VLORA_FLAGS = ["--vlora_depth", "8", "--vlora_rank", "64", "--vlora_type", "qkvom", "--skip_layers", "4"]
SIZES = ("7b", "13b")
STAGES = {"pretrain": "Stage 1", "finetune": "Stage 2"}
HEADER = [
    "connector",
    "weights, optimizer",
    "activations",
    "loss",
    "peak",
    "left of {:g}",
    "TFLOP/step",
    "s/step",
    "hours",
]

CHOICES_OF = [("mlp2x_gelu", 576), ("acformer", 145), ("vlora", 0)]
CHOICES = {
    "padded, all logits": {"packing": False, "chunked_loss": False},
    "padded, loss in chunks": {"packing": False, "chunked_loss": True},
    "padded, loss in chunks, 4 samples": {
        "packing": False, "chunked_loss": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
    },
    "packed, 8 packs": {"packing": True, "per_device_train_batch_size": 8},
    "packed, 4 packs": {"packing": True, "per_device_train_batch_size": 4},
    "packed, 4 packs, kept activations": {
        "packing": True, "per_device_train_batch_size": 4, "gradient_checkpointing": False,
    },
}  # fmt: skip
CHOICE_HEADER = ["peak", "left of {:g}", "samples/step", "computed/needed", "hours"]


def markdown_tables(assumptions: Assumptions) -> str:
    """One table per stage and size."""
    parts = []
    for stage, title in STAGES.items():
        for size in SIZES:
            rows = [_cells(name, tokens, _plan(stage, size, name, tokens, assumptions)) for name, tokens in CONNECTORS]
            header = [cell.format(assumptions.gpu_memory) for cell in HEADER]
            parts.append(f"### {title}, {size.upper()}\n\n{_table(header, rows)}")
    for name, tokens in CHOICES_OF:
        plan = _plan("finetune", "7b", name, tokens, assumptions)
        header = ["stage 2, 7B", *(cell.format(assumptions.gpu_memory) for cell in CHOICE_HEADER)]
        rows = [_choice_cells(choice, plan.changed(**flags)) for choice, flags in CHOICES.items()]
        parts.append(f"### Choices for {_label(name, tokens)}\n\n{_table(header, rows)}")
    return "\n\n".join(parts)


def _label(connector: str, tokens: int) -> str:
    return f"{connector} {tokens}" if tokens else connector


def _plan(stage: str, size: str, connector: str, tokens: int, assumptions: Assumptions) -> Plan:
    kind = "vlora" if connector == "vlora" else "acformer"
    flags = VLORA_FLAGS if connector == "acformer_vlora" else []
    if connector == "pixel_shuffle":
        flags = ["--mm_pixel_shuffle_factor", "2"]
    with _environment(SIZE=size, CONNECTOR=connector, TOKENS=str(tokens)):
        return plan_script(f"scripts/v1_5/{stage}_{kind}.sh", flags, assumptions)[1]


@contextmanager
def _environment(**variables: str):
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _cells(connector: str, tokens: int, plan: Plan) -> list[str]:
    memory = plan.memory
    states = memory.states
    gib = [states.weights + states.optimizer, memory.decoder + memory.connector, memory.loss, memory.peak]
    return [
        _label(connector, tokens),
        *(f"{value / GIB:.1f}" for value in gib),
        _left(plan),
        f"{plan.flops.total / 1e12:,.0f}",
        f"{plan.seconds_per_step:.2f}",
        f"{plan.hours:.1f}",
    ]


def _choice_cells(choice: str, plan: Plan) -> list[str]:
    work = plan.workload
    peak = f"{plan.memory.peak / GIB:.1f}"
    return [choice, peak, _left(plan), f"{work.samples_per_step:.0f}", f"{work.padding:.2f}x", f"{plan.hours:.1f}"]


def _left(plan: Plan) -> str:
    left = plan.assumptions.gpu_memory - plan.needed / GIB
    return f"{left:.1f}" if left >= 0 else f"**{left:.1f}**"


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))] for row in [header, *rows]]
    lines.insert(1, rule)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
