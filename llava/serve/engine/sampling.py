"""Sampling the next token of every row, each with its own settings and its own random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

GREEDY_BELOW = 1e-3  # temperatures up to this decode greedily, as in upstream's worker
SORTED = 1024  # tokens sorted at first where top k does not limit them
TOP_K = 50  # the default of transformers, hence of upstream's worker


@dataclass(frozen=True)
class SamplingSettings:
    """How one request samples.

    Attributes:
        temperature: up to 0.001 the most likely token is chosen.
        top_p: probability mass to sample from, most likely tokens first; 1 samples from all of it.
        top_k: number of most likely tokens to sample from; 0 samples from all.
        seed: the same seed gives the same reply, whatever else runs; None: random.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = TOP_K
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= GREEDY_BELOW

    def cuts(self, vocabulary: int) -> bool:
        """Whether top p or top k exclude tokens of a vocabulary of this size."""
        return self.top_p < 1 or 0 < self.top_k < vocabulary


class Sampler:
    """The settings of one request and its own random number generator."""

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self._generator = torch.Generator()  # on the CPU: the same numbers on every device
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed % 2**63)

    def draw(self) -> float:
        """A uniform random number in [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token id of each row of `logits` `[B, V]`."""
    chosen = logits.argmax(dim=-1).tolist()
    rows = [row for row, sampler in enumerate(samplers) if not sampler.settings.is_greedy]
    whole = [row for row in rows if not samplers[row].settings.cuts(logits.shape[1])]
    cut = [row for row in rows if samplers[row].settings.cuts(logits.shape[1])]
    for some, sample in ((whole, _sample_all), (cut, _sample_likeliest)):
        if some:
            own = [samplers[row] for row in some]
            temperatures = _column([sampler.settings.temperature for sampler in own], logits, torch.float32)
            for row, token in zip(some, sample(logits[some].float() / temperatures, own), strict=True):
                chosen[row] = token
    return chosen


def _sample_all(values: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Sample from the whole vocabulary, which need not be sorted."""
    return _draw(values.softmax(dim=-1), samplers).squeeze(1).tolist()


def _sample_likeliest(values: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Sample from top k, then top p, in the order of transformers."""
    size = values.shape[1]
    limits = [min(sampler.settings.top_k or size, size) for sampler in samplers]
    limit = _column(limits, values, torch.long)
    shares = _column([sampler.settings.top_p for sampler in samplers], values, torch.float32)
    # Sorting a whole vocabulary takes longer than a step of a small model, and top p rarely reaches so far.
    for count in sorted({min(max(limits), SORTED), max(limits)}):
        found, tokens = values.topk(count, dim=-1)  # [B, count], descending
        place = torch.arange(count, device=values.device)
        found = found.masked_fill(place >= limit, -torch.inf)
        goes_on = limit > count
        total = torch.where(goes_on, values.logsumexp(-1, keepdim=True), found.logsumexp(-1, keepdim=True))
        probabilities = (found - total).exp()
        before = probabilities.cumsum(dim=-1) - probabilities  # the share of all likelier tokens
        if count == max(limits) or bool((before[:, -1:] >= shares)[goes_on].all()):
            break
    kept = (before < shares) | (place == 0)
    return tokens.gather(1, _draw(probabilities * kept, samplers)).squeeze(1).tolist()


def _draw(probabilities: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Sample one place per row, `[B, 1]`; rows need not sum to one."""
    cumulative = probabilities.double().cumsum(dim=-1)
    target = _column([sampler.draw() for sampler in samplers], probabilities, torch.float64) * cumulative[:, -1:]
    return (cumulative <= target).sum(dim=-1, keepdim=True).clamp(max=probabilities.shape[1] - 1)


def _column(values: list[float], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device).unsqueeze(1)
