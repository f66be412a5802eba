"""Choosing the next token of every row, each by its own settings and its own random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

GREEDY_BELOW = 1e-3  # temperatures up to this decode greedily (contract serve.md 2.1)
TOP_K = 50  # what transformers takes where nothing is said, and so what upstream's worker samples from


@dataclass(frozen=True)
class SamplingSettings:
    """How one request samples.

    Attributes:
        temperature: up to 0.001 the likeliest token is taken.
        top_p: share of the probability that is sampled from, likeliest tokens first; 1 is all of it.
        top_k: how many of the likeliest tokens are sampled from; 0 is all.
        seed: the same seed gives the same reply, whatever else runs; None is a random one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = TOP_K
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= GREEDY_BELOW


class Sampler:
    """The settings of one request with its source of random numbers, which no other request draws from."""

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self._generator = torch.Generator()  # on the CPU: the same numbers on every device
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed % 2**63)

    def draw(self) -> float:
        """A number in [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token id of each row of `logits` `[B, V]`."""
    chosen = logits.argmax(dim=-1).tolist()
    rows = [row for row, sampler in enumerate(samplers) if not sampler.settings.is_greedy]
    if rows:
        sampled = _sample(logits if len(rows) == len(samplers) else logits[rows], [samplers[row] for row in rows])
        for row, token in zip(rows, sampled, strict=True):
            chosen[row] = token
    return chosen


def _sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """One draw per row: temperature, then top k, then top p, as transformers orders them."""
    settings = [sampler.settings for sampler in samplers]

    def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device).unsqueeze(1)

    values = logits.float() / column([s.temperature for s in settings], torch.float32)
    limits = [min(s.top_k or values.shape[1], values.shape[1]) for s in settings]
    values, tokens = values.topk(max(limits), dim=-1)  # [B, k], descending
    place = torch.arange(values.shape[1], device=logits.device)
    values = values.masked_fill(place >= column(limits, torch.long), -torch.inf)
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the share of all likelier tokens
    kept = (before < column([s.top_p for s in settings], torch.float32)) | (place == 0)
    cumulative = (probabilities * kept).double().cumsum(dim=-1)
    target = column([sampler.draw() for sampler in samplers], torch.float64) * cumulative[:, -1:]
    index = (cumulative <= target).sum(dim=-1, keepdim=True).clamp(max=values.shape[1] - 1)
    return tokens.gather(1, index).squeeze(1).tolist()
