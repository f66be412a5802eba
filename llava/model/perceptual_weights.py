"""Perceptual weights: a picture as a low-rank update of decoder matrices (arXiv 2405.20339; contract vlora.md 2, 3)."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

LETTERS = "qkvom"
# Where each letter's output is added; all but `m` hang on the attention module.
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


class PerceptualWeights(NamedTuple):
    """Low-rank updates of a batch, `y += (x A) B^T`.

    A named tuple, because DeepSpeed looks for tensors in tuples and dictionaries only: under ZeRO-3 it brings back
    the parameters of the module that made them (`Bs`) when the backward pass comes to these tensors.

    Letters: B rows with a picture, G weighted layers, r rank.

    Attributes:
        inputs: per letter A `[B, G, in, r]`, from the picture.
        outputs: per letter B `[G, out, r]`, learned, already times alpha / r.
        skip: decoder layer l is weighted if `(l + 1) % skip == 0`, by group `l // skip`.
        rows: which rows of the batch the entries of `inputs` belong to, ascending; None: row i has entry i. Rows
            without an entry are the language model as it is.
        num_rows: rows of the batch, with and without a picture.
    """

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    skip: int
    rows: torch.Tensor | None = None
    num_rows: int = 0

    @property
    def num_groups(self) -> int:
        return next(iter(self.outputs.values())).shape[0]

    def of_layer(self, layer: int) -> Factors | None:
        """A `[B, in, r]` and B `[out, r]` by letter; None if the layer is not weighted."""
        group = layer // self.skip
        if not self.inputs or (layer + 1) % self.skip or group >= self.num_groups:
            return None
        return {letter: (a[:, group], self.outputs[letter][group]) for letter, a in self.inputs.items()}

    def for_rows(self, pictures_of_rows: list[list[int]]) -> "PerceptualWeights":
        """Weights of the batch from those of its pictures.

        Args:
            pictures_of_rows: per row which entries it shows; the mean over several, none for a row without a picture.
                Where no row shows any, nothing is added to any row, but every parameter gets a gradient, zero.
        """
        shown = [row for row, pictures in enumerate(pictures_of_rows) if pictures]
        num_rows, inputs = len(pictures_of_rows), self.inputs
        if not shown:
            inputs = {letter: a[:0] for letter, a in inputs.items()}
        if any(len(pictures) != 1 for pictures in pictures_of_rows if pictures):
            inputs = {
                letter: torch.stack([a[pictures_of_rows[row]].mean(dim=0) for row in shown])
                for letter, a in inputs.items()
            }
        rows = None
        if len(shown) < num_rows:
            rows = torch.tensor(shown, dtype=torch.long, device=next(iter(inputs.values())).device)
        return self._replace(inputs=inputs, rows=rows, num_rows=num_rows)

    def repeat_rows(self, num_rows: int) -> "PerceptualWeights":
        """For a batch in which every row stands several times in a row: beam search, several return sequences."""
        times = num_rows // self.num_rows
        if times == 1:
            return self
        inputs = {letter: a.repeat_interleave(times, dim=0) for letter, a in self.inputs.items()}
        rows = self.rows
        if rows is not None:
            rows = (rows.unsqueeze(1) * times + torch.arange(times, device=rows.device)).flatten()
        return self._replace(inputs=inputs, rows=rows, num_rows=num_rows)

    def only(self, letters: str) -> "PerceptualWeights":
        """Without the other letters; of no letter left, nothing is added anywhere."""
        inputs, outputs = ({t: x for t, x in part.items() if t in letters} for part in (self.inputs, self.outputs))
        return self._replace(inputs=inputs, outputs=outputs)

    def one_position_earlier(self, position_ids: torch.Tensor) -> torch.Tensor:
        """`[B, n]` less one in the rows with a picture."""
        if self.rows is None:
            return position_ids - 1
        return position_ids.index_add(0, self.rows, position_ids.new_full((len(self.rows), position_ids.shape[1]), -1))


@dataclass(frozen=True)
class BoundLayer:
    """What the hooks of one decoder layer work with during one call of it."""

    factors: Factors
    rows: torch.Tensor | None
    low_rank: dict[str, torch.Tensor]  # x A of q, k, v, which share their input

    def add(self, letter: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output + (x A) B^T` in the rows that have weights."""
        if letter not in self.factors:
            return output
        a, b = self.factors[letter]
        low = self.low_rank.get(letter)
        if low is None:
            low = _rows_of(x, self.rows) @ a
        update = low @ b.T
        return output + update if self.rows is None else output.index_add(0, self.rows, update.to(output.dtype))


def _rows_of(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return x if rows is None else x[rows]


# Which weights the decoder layer works with that runs now in this thread. Set when its attention starts, always.
_bound: ContextVar[BoundLayer | None] = ContextVar("perceptual_weights_of_the_running_layer", default=None)


def install_hooks(layers: nn.ModuleList) -> None:
    """Prepare decoder layers for the keyword `perceptual_weights`; a second call does nothing.

    The weights travel as a keyword of the decoder's forward, not as state of a module: recomputation in the backward
    pass, which calls a layer again with the same keywords, finds the same ones.
    """
    for index, layer in enumerate(layers):
        points = (layer.self_attn, *(getattr(layer.self_attn, n) for n in PROJECTIONS.values()), layer.mlp)
        if getattr(layer, "_perceptual_points", None) == points:
            continue
        layer.self_attn.register_forward_pre_hook(_enter(index), with_kwargs=True)
        for letter, name in PROJECTIONS.items():
            getattr(layer.self_attn, name).register_forward_hook(_add(letter))
        layer.mlp.register_forward_hook(_add("m"))
        object.__setattr__(layer, "_perceptual_points", points)


def _enter(index: int) -> Callable[..., Any]:
    def enter(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        weights = kwargs.get("perceptual_weights")
        kwargs = {name: value for name, value in kwargs.items() if name != "perceptual_weights"}
        factors = None if weights is None else weights.of_layer(index)
        if factors is None:
            _bound.set(None)
            return args, kwargs
        hidden = args[0] if args else kwargs["hidden_states"]
        factors = {letter: (a.to(hidden.dtype), b.to(hidden.dtype)) for letter, (a, b) in factors.items()}
        shared = [letter for letter in "qkv" if letter in factors]
        low_rank: dict[str, torch.Tensor] = {}
        if shared:
            joint = torch.cat([factors[letter][0] for letter in shared], dim=-1)  # [B, d, 3 r]
            parts = (_rows_of(hidden, weights.rows) @ joint).chunk(len(shared), dim=-1)
            low_rank = dict(zip(shared, parts, strict=True))
        _bound.set(BoundLayer(factors, weights.rows, low_rank))
        return args, kwargs

    return enter


def _add(letter: str) -> Callable[..., Any]:
    def add(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        bound = _bound.get()
        return None if bound is None else bound.add(letter, args[0], output)

    return add
