"""Sampling order that groups samples by modality and length.

b is the per-device batch, W the number of micro-batches per optimizer step (world size x accumulation steps), and
M = W b the samples of one optimizer step, called a block here.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def split_to_even_chunks(indices: list[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal a block out to ``num_chunks`` chunks of similar total length.

    Each index goes to the chunk with the smallest total that does not hold its share yet (the first of equals). A
    block that does not divide evenly is dealt out by stride instead.
    """
    if len(indices) % num_chunks != 0:
        return [indices[i::num_chunks] for i in range(num_chunks)]
    share = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals = [0] * num_chunks
    for index in indices:
        shortest = min((i for i in range(num_chunks) if len(chunks[i]) < share), key=lambda i: totals[i])
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
    return chunks


def get_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None = None,
    merge: bool = True,
) -> list[int]:
    """A random order of all samples in which the micro-batches of one optimizer step have similar lengths.

    Args:
        lengths: length of every sample.
        batch_size: b, samples per device and micro-batch.
        world_size: W, micro-batches per optimizer step.
        generator: source of randomness; None is torch's global one.
        merge: without effect, kept for callers of upstream's function.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    indices = []
    for block in _cut(order, world_size * batch_size):
        block = sorted(block, key=lambda i: lengths[i], reverse=True)
        for chunk in split_to_even_chunks(block, lengths, world_size):
            indices += chunk
    return indices


def get_modality_length_grouped_indices(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Like ``get_length_grouped_indices``, with samples of one modality in every optimizer step but the last ones.

    Args:
        lengths: length of every sample, negative for text-only samples.

    Raises:
        AssertionError: a length is zero.
    """
    if any(length == 0 for length in lengths):
        raise AssertionError("Should not have zero length: a sample without words cannot be assigned a modality.")
    absolute = [abs(length) for length in lengths]
    with_image = [i for i, length in enumerate(lengths) if length > 0]
    text_only = [i for i, length in enumerate(lengths) if length < 0]
    if not with_image or not text_only:
        # Absolute lengths: LLaVA passes the negative ones on and sorts text-only data backwards.
        return get_length_grouped_indices(absolute, batch_size, world_size, generator)

    blocks: list[list[int]] = []
    rest: list[int] = []
    for members in (with_image, text_only):
        order = get_length_grouped_indices([absolute[i] for i in members], batch_size, world_size, generator)
        *full, last = _cut([members[i] for i in order], world_size * batch_size)
        blocks += full
        rest += last
    shuffled = [blocks[i] for i in torch.randperm(len(blocks), generator=generator).tolist()]
    return [i for block in shuffled for i in block] + sorted(rest)


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


class LengthGroupedSampler(Sampler[int]):
    """Yields every sample once, grouped by length and, if asked, by modality.

    The order depends on ``seed`` and the epoch only: it is the same on all ranks and after a resume, and
    another one after ``set_epoch``. An explicit ``generator`` replaces them; its state advances with every pass.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        group_by_modality: bool = False,
        seed: int = 0,
    ):
        """
        Args:
            batch_size: samples per device and micro-batch.
            world_size: micro-batches per optimizer step (number of ranks x accumulation steps).
            lengths: length of every sample; negative for text-only samples if ``group_by_modality``.
            generator: source of randomness that replaces ``seed`` and the epoch.
            group_by_modality: keep samples with and without images apart.
            seed: of the order.

        Raises:
            ValueError: no lengths.
        """
        if lengths is None:
            raise ValueError("Lengths must be provided.")
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = list(lengths)
        self.generator = generator
        self.group_by_modality = group_by_modality
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of that epoch, for the next pass on.

        accelerate's data loader calls this, but not when it skips the first batches of a resumed epoch on several
        ranks; the trainer has to do it there.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = self.generator
        if generator is None:
            # mixed, so that (seed, epoch + 1) is not the order of (seed + 1, epoch)
            mixed = random.Random(f"{self.seed}, {self.epoch}").getrandbits(63)
            generator = torch.Generator().manual_seed(mixed)
        if self.group_by_modality:
            return iter(get_modality_length_grouped_indices(self.lengths, self.batch_size, self.world_size, generator))
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, self.world_size, generator))
