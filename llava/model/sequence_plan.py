"""The layout of a batch, planned on the host: where visual tokens, labels, borders and perceptual weights go.

A plan is made of CPU tensors and whole numbers. Moved to a device, it lets a training step run without reading
anything back: embeddings are looked up, visual tokens are copied to their places, and the decoder runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_projector.perceptual_weights import WeightedSegments

Plan = TypeVar("Plan", bound="HostPlan")


@dataclass(frozen=True)
class HostPlan:
    """A dataclass of tensors, whole numbers and other plans that moves to a device as a tensor does."""

    def to(self: Plan, *args: Any, **kwargs: Any) -> Plan:
        """See `Tensor.to`; accelerate calls it."""
        return self._map("to", *args, **kwargs)

    def pin_memory(self: Plan) -> Plan:
        """See `Tensor.pin_memory`; torch's data loader calls it."""
        return self._map("pin_memory")

    def _map(self: Plan, method: str, *args: Any, **kwargs: Any) -> Plan:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: getattr(value, method)(*args, **kwargs)
            for name, value in values.items()
            if isinstance(value, torch.Tensor | HostPlan)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class PlannedSequence:
    """One sequence with places for its visual tokens. CPU tensors of the sequence's length n.

    Attributes:
        token_ids: `[n]`, 0 at visual tokens.
        labels: `[n]`, IGNORE_INDEX at visual tokens.
        visual_places: `[V]`, positions of the visual tokens, ascending.
        visual_total: tokens that its images have; more than V if the sequence is cut.
        slots: `[n]`, True where an image that becomes perceptual weights has its masked position; None without any.
    """

    token_ids: torch.Tensor
    labels: torch.Tensor
    visual_places: torch.Tensor
    visual_total: int
    slots: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


def plan_sequence(
    input_ids: torch.Tensor, labels: torch.Tensor | None, visual_lengths: Sequence[int], max_length: int | None
) -> PlannedSequence:
    """Replace the markers of a sequence, left to right, by places for the visual tokens of its images.

    Args:
        input_ids: `[n]` on the CPU, IMAGE_TOKEN_INDEX at the markers.
        labels: `[n]`; None means that nothing is learned.
        visual_lengths: visual tokens of every image.
        max_length: the sequence is cut to this many positions, visual tokens counted; None means no cut.

    Raises:
        ValueError: markers and images do not match.
    """
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
    is_marker = input_ids == IMAGE_TOKEN_INDEX
    markers = int(is_marker.sum())
    if markers != len(visual_lengths):
        raise ValueError(f"The sequence has {markers} image marker(s), but {len(visual_lengths)} image(s) belong to it")
    repeats = torch.ones_like(input_ids)
    repeats[is_marker] = torch.tensor(visual_lengths, dtype=torch.long)
    is_visual = is_marker.repeat_interleave(repeats)[:max_length]
    token_ids = input_ids.masked_fill(is_marker, 0).repeat_interleave(repeats)[:max_length]
    targets = labels.masked_fill(is_marker, IGNORE_INDEX).repeat_interleave(repeats)[:max_length]
    return PlannedSequence(token_ids, targets, is_visual.nonzero().flatten(), sum(visual_lengths))


def plan_slots(input_ids: torch.Tensor, labels: torch.Tensor | None, max_length: int | None) -> PlannedSequence:
    """A sequence whose images become perceptual weights: each keeps one position, which nothing attends to.

    Raises:
        ValueError: a slot is the first token, so that it would have nothing to attend to.
    """
    slots = (input_ids == IMAGE_TOKEN_INDEX)[:max_length]
    if slots[:1].any():
        raise ValueError("A row starts with an image; put a token in front of it, for example BOS")
    planned = plan_sequence(input_ids, labels, [1] * int((input_ids == IMAGE_TOKEN_INDEX).sum()), max_length)
    return replace(planned, visual_places=planned.visual_places[:0], visual_total=0, slots=slots)


@dataclass(frozen=True)
class AttentionPlan(HostPlan):
    """Which positions attend to which, for `planned_attention`.

    Attributes:
        lengths: of the sequences that share the one row of a packed batch, in order; None where every row holds one
            sequence, padded on the right. Causal attention then needs no mask: padding comes after everything real.
        borders: `[S + 1]` int32, cumulative lengths from 0; None if not packed.
        visible: `[R, n]` bool, False at the slots of images that became weights; None if there is none.
    """

    lengths: tuple[int, ...] | None = None
    borders: torch.Tensor | None = None
    visible: torch.Tensor | None = None

    @property
    def longest(self) -> int:
        """Length of the longest sequence of a packed batch."""
        return max(self.lengths)


@dataclass(frozen=True)
class LossPlan(HostPlan):
    """The positions that predict a label.

    Attributes:
        places: `[L]`, flat positions of the hidden states that predict one.
        targets: `[L]`, the ids to predict.
        weights: `[L]` float32, summing to 1; None: every target weighs 1 / L.
    """

    places: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None = None


@dataclass(frozen=True)
class WeightsPlan(HostPlan):
    """Which sequences have perceptual weights, in the order of the images.

    Attributes:
        count: sequences with an image.
        rows: `[count]`, rows of a padded batch; None if all have one.
        places: `[P]`, flat positions of the sequences with an image in a packed batch; None if all have one.
        lengths: of these sequences, in a packed batch.
        ends: `[count]` int32, cumulative lengths.
    """

    count: int
    rows: torch.Tensor | None = None
    places: torch.Tensor | None = None
    lengths: tuple[int, ...] | None = None
    ends: torch.Tensor | None = None

    def segments(self) -> WeightedSegments | None:
        """What the decoder's hooks need of a packed batch."""
        return None if self.lengths is None else WeightedSegments(self.places, self.lengths, self.ends)


@dataclass(frozen=True)
class SequencePlan(HostPlan):
    """A batch for the decoder, R rows of n positions; R is 1 if packed.

    Attributes:
        token_ids: `[R, n]`, 0 at visual tokens and padding.
        position_ids: `[R, n]`, from 0 in every sequence; 0 at padding.
        mask: `[R, n]` bool, False at padding.
        labels: `[R, n]`, IGNORE_INDEX where nothing is learned and at padding.
        visual_places: `[V]`, flat positions of the visual tokens.
        visual_rows: `[V]`, which row of the visual tokens of all images goes there; None: all of them, in order.
        lengths: of the sequences.
        attention, loss, weights: see there; None outside planned training steps.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None
    visual_places: torch.Tensor
    visual_rows: torch.Tensor | None
    lengths: tuple[int, ...]
    attention: AttentionPlan | None = None
    loss: LossPlan | None = None
    weights: WeightsPlan | None = None

    @property
    def num_tokens(self) -> int:
        """Positions without padding."""
        return sum(self.lengths)

    @property
    def num_positions(self) -> int:
        """Positions that are computed."""
        return self.token_ids.numel()

    def insert_visual(self, embeds: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        """Copy visual tokens `[N, d]` of all images into `embeds` `[R, n, d]`."""
        visual = visual.to(embeds)
        chosen = visual if self.visual_rows is None else visual.index_select(0, self.visual_rows)
        return embeds.flatten(0, 1).index_copy(0, self.visual_places, chosen).view_as(embeds)


def plan_rows(sequences: Sequence[PlannedSequence], padding_side: str = "right") -> SequencePlan:
    """One sequence per row, padded to the longest."""
    longest = max(len(sequence) for sequence in sequences)
    starts = [longest - len(sequence) if padding_side == "left" else 0 for sequence in sequences]
    shape = (len(sequences), longest)
    token_ids = torch.zeros(shape, dtype=torch.long)
    positions, mask = torch.zeros_like(token_ids), torch.zeros(shape, dtype=torch.bool)
    labels = torch.full(shape, IGNORE_INDEX)
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        filled = slice(start, start + len(sequence))
        token_ids[row, filled], labels[row, filled] = sequence.token_ids, sequence.labels
        positions[row, filled], mask[row, filled] = torch.arange(len(sequence)), True
    offsets = [row * longest + start for row, start in enumerate(starts)]
    places, rows = _visual(sequences, offsets)
    lengths = tuple(len(sequence) for sequence in sequences)
    return SequencePlan(token_ids, positions, mask, labels, places, rows, lengths)


def plan_packed(sequences: Sequence[PlannedSequence]) -> SequencePlan:
    """All sequences side by side in one row, without padding. No sequence learns the first token of the next one."""
    lengths = tuple(len(sequence) for sequence in sequences)
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()][:-1]
    labels = torch.cat([sequence.labels for sequence in sequences])
    labels[offsets] = IGNORE_INDEX
    places, rows = _visual(sequences, offsets)
    return SequencePlan(
        token_ids=torch.cat([sequence.token_ids for sequence in sequences])[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        mask=torch.ones(1, sum(lengths), dtype=torch.bool),
        labels=labels[None],
        visual_places=places,
        visual_rows=rows,
        lengths=lengths,
    )


def _visual(sequences: Sequence[PlannedSequence], offsets: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Flat places of the visual tokens of a batch, and their rows among those of all images."""
    places = torch.cat([sequence.visual_places + offset for sequence, offset in zip(sequences, offsets, strict=True)])
    used = 0
    rows = []
    for sequence in sequences:
        rows.append(torch.arange(used, used + len(sequence.visual_places)))
        used += sequence.visual_total
    return places, None if len(places) == used else torch.cat(rows)
