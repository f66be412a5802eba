"""How many positions a training run computes, in how many steps.

Text lengths are taken as log-normal, which nobody measured on the data at hand: state your own median and spread.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist

# Records of the published data files, by name.
KNOWN_RECORDS = {
    "blip_laion_cc_sbu_558k.json": 558_128,
    "llava_v1_5_mix665k.json": 665_298,
    "llava_instruct_80k.json": 80_000,
    "llava_instruct_158k.json": 157_712,
}
PACK_FILL = 0.97  # share of a packed row that holds samples
_QUANTILES = 1000
_CHUNK = 1 << 24


@dataclass(frozen=True)
class TextLengths:
    """Text tokens of the samples: log-normal, at most `limit`.

    Attributes:
        median: tokens.
        spread: sigma, the standard deviation of the logarithm.
        limit: what is left for text of the longest sequence.
    """

    median: float
    spread: float
    limit: int

    def quantile(self, share: float) -> float:
        """The length that this share of the samples does not exceed."""
        return min(self.median * math.exp(self.spread * NormalDist().inv_cdf(share)), self.limit)

    @cached_property
    def mean(self) -> float:
        return sum(self.quantile((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)) / _QUANTILES

    def longest_of(self, samples: int) -> float:
        """The expected length of the longest of so many (Blom's approximation of the normal order statistic)."""
        return self.quantile((samples - 0.375) / (samples + 0.25))


@dataclass(frozen=True)
class Batching:
    """How samples become micro-batches.

    Attributes:
        rows: of a micro-batch on one device: samples, or packs.
        devices: that work in step.
        accumulation: micro-batches per optimizer step.
        pack_length: positions of a pack; None for padded rows.
    """

    rows: int
    devices: int
    accumulation: int = 1
    pack_length: int | None = None


@dataclass(frozen=True)
class Workload:
    """What a run computes.

    Attributes:
        records: samples of the data; 0 if unknown.
        max_steps: replaces the epochs if positive.
        visual_tokens: positions per image.
    """

    records: int
    epochs: float
    max_steps: int
    visual_tokens: int
    text: TextLengths
    batching: Batching

    @property
    def sample_length(self) -> float:
        """Mean positions of a sample."""
        return self.visual_tokens + self.text.mean

    @property
    def samples_per_step(self) -> float:
        b = self.batching
        per_row = 1 if b.pack_length is None else max(1.0, PACK_FILL * b.pack_length / self.sample_length)
        return b.rows * b.devices * b.accumulation * per_row

    @property
    def row_length(self) -> int:
        """Positions of a row as computed. All devices wait for the longest sample of a step's micro-batches."""
        b = self.batching
        if b.pack_length is not None:
            return b.pack_length
        return round(self.visual_tokens + self.text.longest_of(b.rows * b.devices))

    @property
    def longest_row(self) -> int:
        """Positions of the longest row of the whole run, which memory must hold."""
        if self.batching.pack_length is not None:
            return self.batching.pack_length
        return round(self.visual_tokens + self.text.longest_of(self.records or 10**6))

    @property
    def images_per_row(self) -> float:
        """On average."""
        return self.samples_per_step / (self.batching.rows * self.batching.devices * self.batching.accumulation)

    @property
    def most_images_per_row(self) -> int:
        """In a row of short samples, as short as one in ten."""
        if self.batching.pack_length is None:
            return 1
        return math.ceil(self.batching.pack_length / (self.visual_tokens + self.text.quantile(0.1)))

    @property
    def padding(self) -> float:
        """Positions computed over positions needed."""
        return self.row_length / (self.images_per_row * self.sample_length)

    @property
    def steps(self) -> int:
        if self.max_steps > 0:
            return self.max_steps
        return math.ceil(self.records * self.epochs / self.samples_per_step)


def count_records(path: str | None) -> int | None:
    """Records of a data file, counted without parsing it; of a known file that is not here; None if unknown."""
    if path is None:
        return None
    if not Path(path).is_file():
        return KNOWN_RECORDS.get(Path(path).name)
    with open(path, "rb") as file:
        if path.endswith(".jsonl"):
            return sum(1 for line in file if line.strip())
        key, count, rest = b'"conversations"', 0, b""
        while chunk := file.read(_CHUNK):
            rest += chunk
            count += rest.count(key)
            rest = rest[-(len(key) - 1) :]  # too short to be counted twice
        return count
