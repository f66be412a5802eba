"""What `gpu.py` measures: the connectors, the samples of both training stages, and the arithmetic of a step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gpu_bench import Run
from packing import LIMIT, Conversations

from llava.model import LlavaLlamaForCausalLM
from llava.model.sequence_plan import SequencePlan
from llava.tools.cost import Cost
from llava.tools.flops import llm_forward_flops, low_rank_flops
from llava.train.packing import PackSampler
from llava.train.planning import BatchLayout, PlanningCollator
from llava.train.sampler import LengthGroupedSampler

BATCH = {1: 16, 2: 8}  # by stage: samples of a padded step; packed steps hold about as many
CONNECTORS = [
    ("mlp2x_gelu", 576),
    ("acformer", 65),
    ("acformer", 145),
    ("acformer", 257),
    ("pooling", 145),
    ("vlora", 0),
]
TOY_CONNECTORS = [("acformer", 17), ("vlora", 0)]


def connectors(run: Run) -> list[tuple[str, int]]:
    """Names and visual tokens."""
    return TOY_CONNECTORS if run.is_rehearsal else CONNECTORS


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
