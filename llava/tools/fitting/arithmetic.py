"""FLOPs of a training step, from the formulas of `llava/tools/flops.py`.

A frozen part with gradients flowing through it costs its forward pass twice, a part that trains three times;
recomputation adds one more pass of the decoder. Work on padding counts, since the device does it.
"""

from dataclasses import dataclass

from llava.tools.connector_costs import Shapes, connector_flops
from llava.tools.fitting.decoder import DecoderMemory
from llava.tools.flops import LLMShape, llm_forward_flops, low_rank_flops, vit_flops

TRAINED, FROZEN = 3, 2


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step on one device."""

    tower: float
    connector: float
    decoder: float

    @property
    def total(self) -> float:
        return self.tower + self.connector + self.decoder


@dataclass(frozen=True)
class Rows:
    """What a device computes in a step.

    Attributes:
        count: rows.
        length: positions of a row.
        segments: samples of a row, which do not attend to one another.
        logits: positions of a row with a logit.
    """

    count: int
    length: int
    segments: float
    logits: float


def step_flops(
    connector: str, shapes: Shapes, decoder: DecoderMemory, rows: Rows, *, tokens: int, blocks: int, tower_trains: bool
) -> StepFlops:
    """The arithmetic of one step.

    Args:
        connector: `mm_projector_type`.
        tokens: visual tokens per image.
        blocks: of the vision tower that run.
    """
    llm, images = shapes.llm, rows.count * rows.segments
    passes = (TRAINED if decoder.trains else FROZEN) + decoder.recomputes
    segment = rows.length / max(rows.segments, 1)
    forward = rows.segments * llm_forward_flops(llm, segment, rows.logits / max(rows.segments, 1))
    if decoder.generator is not None:
        forward += low_rank_flops(llm, rows.length, decoder.generator)
    lora = 0.0
    if decoder.lora is not None:
        lora = TRAINED * 2 * rows.length * lora_parameters(llm, decoder.lora.rank)
    return StepFlops(
        tower=images * vit_flops(blocks, shapes.vision) * (TRAINED if tower_trains else 1),
        connector=images * TRAINED * connector_flops(connector, tokens, shapes),
        decoder=rows.count * (passes * forward + lora),
    )


def lora_parameters(llm: LLMShape, rank: int) -> int:
    """Numbers of all adapters, `r (in + out)` for each of a layer's seven matrices."""
    d, q, k = llm.hidden_size, llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    widths = 2 * (d + q) + 2 * (d + k) + 3 * (d + llm.intermediate_size)
    return llm.layers * rank * widths
