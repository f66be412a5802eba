"""The collator of training: plans the layout of a batch on the host, from lengths that are all known there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.anyres import CropLayout
from llava.model.sequence_plan import (
    AttentionPlan,
    LossPlan,
    PlannedSequence,
    SequencePlan,
    WeightsPlan,
    plan_packed,
    plan_rows,
    plan_sequence,
    plan_slots,
)

AVERAGES = ("token", "sample")


@dataclass(frozen=True)
class BatchLayout:
    """How a model wants its batches.

    Attributes:
        space: `Connector.space`.
        num_visual_tokens: per image or crop.
        max_length: a sequence is cut to this many positions, visual tokens counted.
        packed: all sequences side by side in one row, instead of one per row.
        chunked_loss: compute logits only where a label is, some positions at a time.
        loss_average: `token`: all labelled tokens of a batch weigh the same; `sample`: all samples do.
        crops: how the crops of an image are merged; None for one view per image.
        elastic_budgets: numbers of visual tokens, one of which is drawn for every optimizer step; empty: the model's.
    """

    space: str
    num_visual_tokens: int
    max_length: int
    packed: bool = False
    chunked_loss: bool = False
    loss_average: str = "token"
    crops: CropLayout | None = None
    elastic_budgets: tuple[int, ...] = ()

    def visual_lengths(
        self, markers: int, size: tuple[int, int] | None = None, num_visual_tokens: int | None = None
    ) -> list[int]:
        """Visual tokens of the images of one sequence.

        Args:
            markers: number of images.
            size: (width, height) of the image in pixels, where crops are merged.
            num_visual_tokens: per crop, instead of the model's own number.
        """
        if not markers:
            return []
        per_crop = self.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
        return [per_crop if self.crops is None else self.crops.count_tokens(per_crop, size)] * markers

    def sequence_length(
        self, num_ids: int, markers: int, size: tuple[int, int] | None = None, num_visual_tokens: int | None = None
    ) -> int:
        """Positions of a sequence of `num_ids` token ids, markers counted, after images are put in and it is cut."""
        visual = (
            0 if self.space == "parameter" else sum(self.visual_lengths(markers, size, num_visual_tokens)) - markers
        )
        return min(num_ids + visual, self.max_length)

    def plan_sample(self, sample: dict[str, Any]) -> PlannedSequence:
        """The sequence of one item of the data set."""
        ids, labels = sample["input_ids"][: self.max_length], sample["labels"][: self.max_length]
        if self.space == "parameter":
            return plan_slots(ids, labels, self.max_length)
        markers = int((ids == IMAGE_TOKEN_INDEX).sum())
        visual = self.visual_lengths(markers, sample.get("image_size"), sample.get("num_visual_tokens"))
        return plan_sequence(ids, labels, visual, self.max_length)


class PlanningCollator:
    """Collates items of the data set, or lists of such (packs), to a `SequencePlan` and the images that it shows.

    Keys: `plan`; `images`, `[N, 3, H, W]` or a list of `[M, 3, H, W]`; and `image_sizes` and `num_visual_tokens` where
    the items have them. A batch of text only keeps one image, see `assemble_planned`.
    """

    def __init__(self, layout: BatchLayout) -> None:
        self.layout = layout

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """
        Raises:
            ValueError: markers and images of an item do not match.
        """
        samples = [sample for item in items for sample in (item if isinstance(item, list) else [item])]
        limit = self.layout.max_length
        shows = [bool((sample["input_ids"][:limit] == IMAGE_TOKEN_INDEX).any()) for sample in samples]
        sequences = [self.layout.plan_sample(sample) for sample in samples]
        batch: dict[str, Any] = {"plan": plan_training(sequences, shows, self.layout)}
        with_image = [sample for sample, shown in zip(samples, shows, strict=True) if shown]
        with_image = with_image or [sample for sample in samples if "image" in sample][:1]
        if with_image and "image" in with_image[0]:
            images = [sample["image"] for sample in with_image]
            same_shape = all(image.shape == images[0].shape for image in images)
            batch["images"] = torch.stack(images) if same_shape else images
            if "image_size" in with_image[0]:
                batch["image_sizes"] = [sample["image_size"] for sample in with_image]
        if "num_visual_tokens" in samples[0]:
            batch["num_visual_tokens"] = samples[0]["num_visual_tokens"]
        return batch


def plan_training(sequences: Sequence[PlannedSequence], shows: Sequence[bool], layout: BatchLayout) -> SequencePlan:
    """The plan of one micro-batch.

    Args:
        shows: which sequences have an image.
    """
    plan = plan_packed(sequences) if layout.packed else plan_rows(sequences)
    plan = replace(plan, attention=_plan_attention(sequences, plan, layout))
    if layout.space != "input":
        plan = replace(plan, weights=_plan_weights(plan, shows, layout))
    if layout.chunked_loss:
        return replace(plan, loss=plan_loss(plan, layout.loss_average), labels=None)
    return plan


def _plan_attention(sequences: Sequence[PlannedSequence], plan: SequencePlan, layout: BatchLayout) -> AttentionPlan:
    visible = None
    if any(sequence.slots is not None and sequence.slots.any() for sequence in sequences):
        hidden = [sequence.slots for sequence in sequences]
        padded = torch.cat(hidden)[None] if layout.packed else torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        visible = ~padded
    if not layout.packed:
        return AttentionPlan(visible=visible)
    borders = torch.tensor([0, *plan.lengths]).cumsum(0).to(torch.int32)
    return AttentionPlan(plan.lengths, borders, visible)


def _plan_weights(plan: SequencePlan, shows: Sequence[bool], layout: BatchLayout) -> WeightsPlan:
    count = sum(shows)
    chosen = torch.tensor(shows)
    if not layout.packed:
        return WeightsPlan(count, None if all(shows) else chosen.nonzero().flatten())
    lengths = tuple(length for length, shown in zip(plan.lengths, shows, strict=True) if shown)
    places = chosen.repeat_interleave(torch.tensor(plan.lengths)).nonzero().flatten()
    ends = torch.tensor(lengths, dtype=torch.int32).cumsum(0).to(torch.int32)
    return WeightsPlan(count, None, None if all(shows) else places, lengths, ends)


def plan_loss(plan: SequencePlan, average: str = "token") -> LossPlan:
    """Where labels are predicted: the position before each, in the same row."""
    flat = plan.labels.clone()
    flat[:, 0] = IGNORE_INDEX  # the first position of a row has none before it
    flat = flat.flatten()
    labelled = (flat != IGNORE_INDEX).nonzero().flatten()
    weights = None
    if average == "sample":
        row_of = torch.arange(plan.num_positions) // plan.token_ids.shape[1]
        sample = row_of if plan.attention is None or plan.attention.lengths is None else _sample_of(plan)
        counts = torch.bincount(sample[labelled], minlength=len(plan.lengths))
        weights = 1 / (counts[sample[labelled]] * max(int((counts > 0).sum()), 1)).float()
    return LossPlan(labelled - 1, flat[labelled], weights)


def _sample_of(plan: SequencePlan) -> torch.Tensor:
    """The sequence of every position of a packed batch."""
    return torch.arange(len(plan.lengths)).repeat_interleave(torch.tensor(plan.lengths))
