"""Packing: which samples share a row. Rows follow from lengths, seed and epoch alone, so all processes agree."""

import heapq
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from llava.train.data import BadSampleError, LazySupervisedDataset
from llava.train.planning import BatchLayout

logger = logging.getLogger(__name__)

# Samples that are sorted and packed together: enough for rows that are 99 % full, few enough to stay shuffled.
WINDOW = 4096


class Pack(NamedTuple):
    """The samples of one row.

    Attributes:
        indices: into the data set.
        num_visual_tokens: per image or crop, in this optimizer step; None: the model's own number.
    """

    indices: tuple[int, ...]
    num_visual_tokens: int | None = None


class PackedDataset(Dataset):
    """Gives the samples of a `Pack` as a list, each with the pack's number of visual tokens if it has one.

    With `--on_bad_sample skip` a bad sample is left out of its row, since another one may not fit in.
    """

    def __init__(self, samples: LazySupervisedDataset, layout: BatchLayout, measured: np.ndarray | None = None) -> None:
        """
        Args:
            layout: of the batches.
            measured: see `measure_samples`; None where every sample has a row of its own.
        """
        self.samples, self.layout, self.measured = samples, layout, measured

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, pack: Pack) -> list[dict[str, Any]]:
        """
        Raises:
            BadSampleError: see `LazySupervisedDataset`.
        """
        items = self._good(pack.indices) or [self.samples[pack.indices[0]]]
        if pack.num_visual_tokens is not None:
            items = [{**item, "num_visual_tokens": pack.num_visual_tokens} for item in items]
        return items

    def _good(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        if self.samples.on_bad_sample == "error":
            return [self.samples[index] for index in indices]
        items = []
        for index in indices:
            try:
                items.append(self.samples.load(index))
            except BadSampleError as error:
                logger.warning("Left out: %s", error)
        return items


class PackSampler(Sampler[Pack]):
    """Yields the packs of an epoch, a new composition and order in each. Every epoch has equally many.

    Args:
        lengths: per number of visual tokens (None: the model's own) the positions of every sample; 0 leaves it out.
        capacity: positions of a row.
        packs_per_step: rows of one optimizer step over all processes. A step has one number of visual tokens.
        with_image: which samples have an image; if given, rows and optimizer steps are of one modality, but for the
            last steps. None mixes.
        seed: of composition and order.
        num_epochs: of the run.

    Raises:
        ValueError: no sample can be used.
    """

    def __init__(
        self,
        lengths: dict[int | None, np.ndarray],
        capacity: int,
        packs_per_step: int,
        with_image: np.ndarray | None = None,
        seed: int = 0,
        num_epochs: int = 1,
    ) -> None:
        self.lengths, self.capacity, self.packs_per_step = lengths, capacity, packs_per_step
        self.with_image, self.seed = with_image, seed
        if not any(used.any() for used in lengths.values()):
            raise ValueError("The training data has no record that can be used")
        self.epoch = 0
        self._current: tuple[int, list[Pack]] | None = None
        self.count = max(sum(map(len, self._groups(epoch))) for epoch in range(num_epochs))

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Choose the packs of that epoch, for the next pass on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pack]:
        if self._current is None or self._current[0] != self.epoch:
            self._current = (self.epoch, self.packs_of(self.epoch))
        return iter(self._current[1])

    def packs_of(self, epoch: int) -> list[Pack]:
        """All packs of an epoch, in order."""
        groups = self._groups(epoch)
        missing = self.count - sum(map(len, groups))
        if missing > 0:  # another epoch needs more
            largest = max(groups, key=len)
            _split(largest, len(largest) + missing)
        shuffle = random.Random(f"{self.seed}, {epoch}, order").shuffle
        steps: list[list[Pack]] = []
        rest: list[Pack] = []
        for packs in groups:
            shuffle(packs)
            whole = len(packs) // self.packs_per_step * self.packs_per_step
            steps += [packs[i : i + self.packs_per_step] for i in range(0, whole, self.packs_per_step)]
            rest += packs[whole:]
        shuffle(steps)
        return [pack for step in steps for pack in step] + rest

    def _groups(self, epoch: int) -> list[list[Pack]]:
        """Packs by modality and number of visual tokens, as whole steps; then those of the samples that are left."""
        generator = np.random.default_rng([self.seed, epoch])
        budgets = list(self.lengths)
        usable = np.flatnonzero(np.minimum.reduce(list(self.lengths.values())) > 0)
        order = generator.permutation(usable)
        share = generator.integers(len(budgets), size=len(order)) if len(budgets) > 1 else np.zeros(len(order), int)
        kind = np.zeros(len(order), int) if self.with_image is None else self.with_image[order].astype(int)
        groups, rest = [], []
        for group in np.unique(2 * share + kind):
            packs = self._pack(order[2 * share + kind == group], budgets[group // 2])
            whole = len(packs) // self.packs_per_step * self.packs_per_step
            rest += [index for pack in packs[whole:] for index in pack.indices]
            groups.append(packs[:whole])
        if rest:  # too few of their kind for a step of their own
            groups.append(self._pack(np.array(rest), budgets[generator.integers(len(budgets))]))
        return groups

    def _pack(self, members: np.ndarray, budget: int | None) -> list[Pack]:
        """Packs of some samples, a multiple of a step's if there are enough samples."""
        packs = [
            Pack(tuple(row), budget)
            for start in range(0, len(members), WINDOW)
            for row in pack_window(members[start : start + WINDOW], self.lengths[budget], self.capacity)
        ]
        _split(packs, -(-len(packs) // self.packs_per_step) * self.packs_per_step)
        return packs

    def describe(self) -> str:
        """One line about the epoch, for the log."""
        packs = list(self)  # kept for the pass that follows
        samples = sum(len(pack.indices) for pack in packs)
        positions = sum(int(self.lengths[pack.num_visual_tokens][list(pack.indices)].sum()) for pack in packs)
        return (
            f"{samples} samples in {len(packs)} rows of up to {self.capacity} positions, "
            f"{positions / (len(packs) * self.capacity):.1%} full; an optimizer step has {self.packs_per_step} rows, "
            f"about {samples / len(packs) * self.packs_per_step:.0f} samples"
        )


class ElasticSampler(Sampler[Pack]):
    """Yields the samples of another sampler one by one, with a number of visual tokens drawn for every optimizer step.

    Args:
        order: gives the samples; its `set_epoch` is called.
        budgets: numbers of visual tokens.
        samples_per_step: of one optimizer step over all processes.
        seed: of the draws, which follow from it and the epoch alone.
    """

    def __init__(self, order: Any, budgets: Sequence[int], samples_per_step: int, seed: int = 0) -> None:
        self.order, self.budgets, self.samples_per_step, self.seed = order, list(budgets), samples_per_step, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the draws of that epoch, for the next pass on."""
        self.epoch = epoch
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[Pack]:
        draw = random.Random(f"{self.seed}, {self.epoch}, budgets")
        budget = None
        for place, index in enumerate(self.order):
            if place % self.samples_per_step == 0:
                budget = draw.choice(self.budgets)
            yield Pack((index,), budget)


def pack_window(members: np.ndarray, lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """First-fit decreasing: every sample, the longest first, goes into the first row that has room for it."""
    rows: list[list[int]] = []
    room = np.zeros(len(members), dtype=np.int64)  # of every row; those not begun yet have none
    for index in members[np.argsort(-lengths[members], kind="stable")].tolist():
        length = int(lengths[index])
        first = int(np.argmax(room[: len(rows)] >= length)) if rows else 0
        if not rows or room[first] < length:
            first = len(rows)
            rows.append([])
            room[first] = capacity
        rows[first].append(index)
        room[first] -= length
    return rows


def _split(packs: list[Pack], count: int) -> None:
    """Divide the packs with the most samples until there are `count`, or none has more than one sample."""
    heap = [(-len(pack.indices), place) for place, pack in enumerate(packs)]
    heapq.heapify(heap)
    while len(packs) < count and heap and -heap[0][0] > 1:
        _, place = heapq.heappop(heap)
        indices, budget = packs[place]
        packs[place] = Pack(indices[::2], budget)
        packs.append(Pack(indices[1::2], budget))
        for new in (place, len(packs) - 1):
            heapq.heappush(heap, (-len(packs[new].indices), new))
