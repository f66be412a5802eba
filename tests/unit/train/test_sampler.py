"""The order of samples: the same on all ranks and after a resume, another one in every epoch."""

import random

import pytest
import torch

from llava.train.sampler import LengthGroupedSampler, get_length_grouped_indices


def make_lengths(n: int = 200, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.choice([1, -1]) * rng.randint(5, 300) for _ in range(n)]


def sampler(lengths: list[int], **more) -> LengthGroupedSampler:
    return LengthGroupedSampler(4, 3, lengths, group_by_modality=True, **more)


def test_order_depends_on_seed_and_epoch_only() -> None:
    lengths = make_lengths()
    torch.manual_seed(1)
    first = list(sampler(lengths, seed=7))
    torch.manual_seed(2)  # another rank, or a resumed process
    other = sampler(lengths, seed=7)
    assert list(other) == first
    assert list(other) == first  # a pass does not move it on
    state = torch.random.get_rng_state()
    list(other)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone


def test_epochs_and_seeds_differ_and_can_be_repeated() -> None:
    lengths = make_lengths()
    orders = {}
    for seed in (0, 1):
        for epoch in range(3):
            one = sampler(lengths, seed=seed)
            one.set_epoch(epoch)
            orders[seed, epoch] = tuple(one)
    assert len(set(orders.values())) == len(orders)
    resumed = sampler(lengths, seed=1)
    resumed.set_epoch(2)
    assert tuple(resumed) == orders[1, 2]


def test_accelerate_hands_the_epoch_on() -> None:
    """The data loader that transformers' Trainer uses calls set_epoch with the epoch it is in."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    lengths = make_lengths(40)
    one = sampler(lengths, seed=3)
    loader = prepare_data_loader(
        DataLoader(list(range(40)), batch_size=4, sampler=one), num_processes=2, process_index=0
    )
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen.append([i for batch in loader for i in batch.tolist()])
    assert one.epoch == 1
    assert seen[0] != seen[1]


def test_ranks_get_similar_lengths() -> None:
    lengths = [abs(length) for length in make_lengths(400)]
    order = get_length_grouped_indices(lengths, 4, 2, torch.Generator().manual_seed(0))
    spread = []
    for start in range(0, len(order), 8):
        block = order[start : start + 8]
        totals = [sum(lengths[i] for i in block[:4]), sum(lengths[i] for i in block[4:])]
        spread.append(abs(totals[0] - totals[1]) / max(totals))
    assert sum(spread) / len(spread) < 0.1


@pytest.mark.parametrize("kind", [1, -1])
def test_one_modality_groups_by_absolute_length(kind: int) -> None:
    """Text-only data is ordered like data with images."""
    lengths = [kind * abs(length) for length in make_lengths(50)]
    plain = LengthGroupedSampler(4, 3, [abs(length) for length in lengths], seed=5)
    assert list(sampler(lengths, seed=5)) == list(plain)


def test_tiny_data_sets() -> None:
    for lengths in ([5], [5, -3], [1, 2, -1], [-4, -4]):
        assert sorted(sampler(lengths)) == list(range(len(lengths)))
    assert list(LengthGroupedSampler(4, 3, [])) == []
