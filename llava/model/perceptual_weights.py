"""Perceptual weights: a picture as a low-rank update of decoder matrices (arXiv 2405.20339; contract vlora.md 2, 3)."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LETTERS = "qkvom"
# Where each letter's output is added; all but `m` hang on the attention module.
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PerceptualWeights:
    """Low-rank updates of a batch, `y += (x A) B^T`.

    Letters: B rows with a picture, G weighted layers, r rank.

    Attributes:
        inputs: per letter A `[B, G, in, r]`, from the picture.
        outputs: per letter B `[G, out, r]`, learned, already times alpha / r.
        skip: decoder layer l is weighted if `(l + 1) % skip == 0`, by group `l // skip`.
        rows: which rows of the batch the entries of `inputs` belong to, ascending; None: row i has entry i. Rows
            without an entry are the language model as it is.
    """

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    skip: int
    rows: torch.Tensor | None = None

    @property
    def num_groups(self) -> int:
        return next(iter(self.outputs.values())).shape[0]

    def of_layer(self, layer: int) -> Factors | None:
        """A `[B, in, r]` and B `[out, r]` by letter; None if the layer is not weighted."""
        group = layer // self.skip
        if (layer + 1) % self.skip or group >= self.num_groups:
            return None
        return {letter: (a[:, group], self.outputs[letter][group]) for letter, a in self.inputs.items()}

    def for_rows(self, rows: torch.Tensor) -> "PerceptualWeights":
        """The same entries, said to belong to `rows`."""
        return PerceptualWeights(self.inputs, self.outputs, self.skip, rows)

    def repeat_rows(self, times: int) -> "PerceptualWeights":
        """Every row `times` times in a row, as beam search and several return sequences do."""
        if times == 1:
            return self
        inputs = {letter: a.repeat_interleave(times, dim=0) for letter, a in self.inputs.items()}
        rows = self.rows
        if rows is not None:
            rows = (rows.unsqueeze(1) * times + torch.arange(times, device=rows.device)).flatten()
        return PerceptualWeights(inputs, self.outputs, self.skip, rows)
