"""Perceptual weights: an image as a low-rank update of decoder matrices (arXiv 2405.20339)."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import signature
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

LETTERS = "qkvom"
# Where each letter's output is added; all but `m` hang on the attention module.
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
SHARED = "qkv"  # read the same hidden state
MARK = "_perceptual_weights_hook"  # attribute of modules that have theirs
# Have a hook called also where its module raises. torch 2.0 has no such hooks; its recomputation never stops early, so
# only an error leaves state behind there, and the next layer ends it.
ALWAYS = {"always_call": True} if "always_call" in signature(nn.Module.register_forward_hook).parameters else {}


class LayerWeights(NamedTuple):
    """The update of one decoder layer.

    Attributes:
        inputs: A `[B, in, r]` by letter; of letters that read the same hidden state side by side, `[B, in, 3 r]` for
            "qkv".
        outputs: B transposed, `[r, out]`, by letter.
    """

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]

    def to(self, device: torch.device) -> "LayerWeights":
        return LayerWeights(*({key: x.to(device) for key, x in part.items()} for part in self))


class WeightedSegments(NamedTuple):
    """The sequences with an image in a batch that holds all sequences side by side, `[1, total]`.

    Attributes:
        places: `[P]`, positions of these sequences, ascending; None if every sequence has an image.
        lengths: of each; they sum to P.
        ends: `[S]` int32, cumulative lengths, on the device of the decoder.
    """

    places: torch.Tensor | None
    lengths: tuple[int, ...]
    ends: torch.Tensor


class BoundWeights(NamedTuple):
    """Perceptual weights in the form that decoder layers use: sliced, cast and concatenated once, not in every step.

    Attributes:
        layers: the update of each decoder layer, None for those without; layers beyond the last have none.
        rows, num_rows: see `PerceptualWeights`.
        segments: of a packed batch, whose sequences take the place of rows.
    """

    layers: tuple[LayerWeights | None, ...]
    rows: torch.Tensor | None
    num_rows: int
    segments: WeightedSegments | None = None

    def of_layer(self, layer: int) -> LayerWeights | None:
        return self.layers[layer] if layer < len(self.layers) else None

    def one_position_earlier(self, position_ids: torch.Tensor) -> torch.Tensor:
        """`[B, n]` minus one in the rows with an image."""
        if self.rows is None:
            return position_ids - 1
        return position_ids.index_add(0, self.rows, position_ids.new_full((len(self.rows), position_ids.shape[1]), -1))


class PerceptualWeights(NamedTuple):
    """Low-rank updates of a batch, `y += (x A) B^T`.

    A named tuple, because DeepSpeed looks for tensors in tuples and dictionaries only: under ZeRO-3 it gathers
    the parameters of the module that made them (`Bs`) when the backward pass reaches these tensors.

    Letters: B rows with an image, G weighted layers, r rank.

    Attributes:
        inputs: per letter A `[B, G, in, r]`, from the image.
        outputs: per letter B `[G, out, r]`, learned, already times alpha / r.
        skip: decoder layer l is weighted if `(l + 1) % skip == 0`, by group `l // skip`.
        rows: which rows of the batch the entries of `inputs` belong to, ascending; None: row i has entry i. Rows
            without an entry are the language model as it is.
        num_rows: rows of the batch, with and without an image.
        reduction: what becomes of several images of a row: `mean` or `sum` of their A.
        segments: of a packed batch, whose sequences with an image are the entries of `inputs`.
    """

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    skip: int
    rows: torch.Tensor | None = None
    num_rows: int = 0
    reduction: str = "mean"
    segments: WeightedSegments | None = None

    @property
    def num_groups(self) -> int:
        return next(iter(self.outputs.values())).shape[0]

    def group_of(self, layer: int) -> int | None:
        """The index of a decoder layer among the weighted ones; None if it is not weighted."""
        group = layer // self.skip
        return None if not self.inputs or (layer + 1) % self.skip or group >= self.num_groups else group

    def of_layer(self, layer: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A `[B, in, r]` and B `[out, r]` by letter; empty if the layer is not weighted."""
        group = self.group_of(layer)
        if group is None:
            return {}
        return {letter: (a[:, group], self.outputs[letter][group]) for letter, a in self.inputs.items()}

    def bind(self, dtype: torch.dtype) -> BoundWeights:
        """The weights for the decoder, in the dtype of its layers."""
        if not self.inputs:
            return BoundWeights((), self.rows, self.num_rows, self.segments)
        shared = "".join(letter for letter in SHARED if letter in self.inputs)
        inputs = {letter: a.to(dtype) for letter, a in self.inputs.items() if letter not in shared}
        if shared:
            inputs[shared] = torch.cat([self.inputs[letter] for letter in shared], dim=-1).to(dtype)
        outputs = {letter: self.outputs[letter].to(dtype).transpose(1, 2) for letter in self.inputs}
        groups = [self.group_of(layer) for layer in range(self.num_groups * self.skip)]
        layers = tuple(
            None
            if group is None
            else LayerWeights(
                {letters: a[:, group] for letters, a in inputs.items()},
                {letter: b[group] for letter, b in outputs.items()},
            )
            for group in groups
        )
        return BoundWeights(layers, self.rows, self.num_rows, self.segments)

    def for_rows(self, images_of_rows: list[list[int]]) -> "PerceptualWeights":
        """Weights of the batch from those of its images.

        Args:
            images_of_rows: per row which entries it shows, none for a row without an image.
                Where no row shows any, nothing is added to any row, but every parameter gets a gradient, zero.
        """
        shown = [row for row, images in enumerate(images_of_rows) if images]
        num_rows, inputs = len(images_of_rows), self.inputs
        order = [image for images in images_of_rows for image in images]
        if len(order) > len(shown):  # several in a row
            reduce = {"mean": torch.mean, "sum": torch.sum}[self.reduction]
            inputs = {
                letter: torch.stack([reduce(a[images_of_rows[row]], dim=0) for row in shown])
                for letter, a in inputs.items()
            }
        elif order != list(range(len(next(iter(inputs.values()))))):
            inputs = {letter: a[order] for letter, a in inputs.items()}
        rows = None
        if len(shown) < num_rows:
            rows = torch.tensor(shown, dtype=torch.long, device=next(iter(inputs.values())).device)
        return self._replace(inputs=inputs, rows=rows, num_rows=num_rows)

    def repeat_rows(self, times: int) -> "PerceptualWeights":
        """Weights of a batch in which every row is repeated `times` times: beam search, several return sequences."""
        inputs = {letter: a.repeat_interleave(times, dim=0) for letter, a in self.inputs.items()}
        rows = self.rows
        if rows is not None:
            rows = (rows.unsqueeze(1) * times + torch.arange(times, device=rows.device)).flatten()
        return self._replace(inputs=inputs, rows=rows, num_rows=times * self.num_rows)

    def only(self, letters: str) -> "PerceptualWeights":
        """Weights of these letters only; with none left, nothing is added."""
        inputs, outputs = ({t: x for t, x in part.items() if t in letters} for part in (self.inputs, self.outputs))
        return self._replace(inputs=inputs, outputs=outputs)


@dataclass(frozen=True)
class BoundLayer:
    """The state that the hooks of one decoder layer share during one call."""

    weights: LayerWeights
    rows: torch.Tensor | None
    shared: dict[str, torch.Tensor]  # x A of q, k and v, `[B, n, r]`, or `[P, r]` of segments
    segments: WeightedSegments | None = None

    def add(self, letter: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output + (x A) B^T` in the rows that have weights."""
        b = self.weights.outputs.get(letter)
        if b is None:
            return output
        low = self.shared.get(letter)
        if low is None:
            low = _low_rank(x, self.weights.inputs[letter], self.rows, self.segments)
        low, b = _cast(low, output.dtype), _cast(b, output.dtype)
        if self.rows is not None:
            return output.index_add(0, self.rows, _cast(low @ b, output.dtype))
        if self.segments is not None and self.segments.places is not None:
            flat = output.flatten(0, -2)
            return flat.index_add(0, self.segments.places, _cast(low @ b, output.dtype)).view_as(output)
        return torch.addmm(output.flatten(0, -2), low.flatten(0, -2), b).view_as(output)


def _low_rank(
    x: torch.Tensor, a: torch.Tensor, rows: torch.Tensor | None, segments: WeightedSegments | None
) -> torch.Tensor:
    """`x A` of the rows or segments that have weights."""
    a = _cast(a, x.dtype)
    if segments is not None:
        flat = x.flatten(0, -2)
        return segment_products(flat if segments.places is None else flat.index_select(0, segments.places), a, segments)
    return (x if rows is None else x[rows]) @ a


def segment_products(x: torch.Tensor, a: torch.Tensor, segments: WeightedSegments) -> torch.Tensor:
    """Each segment of `x` `[P, in]` times its own matrix of `a` `[S, in, r]` -> `[P, r]`.

    One grouped product where torch has a kernel that needs no lengths on the host; else one product per segment.
    """
    if not segments.lengths:
        return x.new_empty(0, a.shape[-1]) + a.sum() * 0  # no segment has weights, but all ranks do the same
    if _has_grouped_kernel(x, a):
        return F.grouped_mm(x, a, offs=segments.ends)
    return torch.cat([part @ own for part, own in zip(x.split(segments.lengths), a, strict=True)])


def _has_grouped_kernel(x: torch.Tensor, a: torch.Tensor) -> bool:
    """Elsewhere torch reads the lengths back from the device, or knows the operation for other dtypes only.

    The kernel reads rows that are multiples of 16 bytes.
    """
    if not hasattr(F, "grouped_mm") or a.shape[-1] % 8:
        return False
    if x.device.type == "cuda":
        return x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return x.device.type == "cpu" or (x.device.type == "meta" and x.dtype == torch.bfloat16)


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Like `Tensor.to`, but without a call if the dtype matches, because calls count in a decoding step."""
    return x if x.dtype == dtype else x.to(dtype)


# Which weights the decoder layer works with that runs now in this thread. Outside of a weighted layer there are none.
_bound: ContextVar[BoundLayer | None] = ContextVar("perceptual_weights_of_the_running_layer", default=None)
_installing = Lock()


def install_hooks(
    layers: nn.ModuleList, weights: BoundWeights, source: Callable[[], BoundWeights | None] | None = None
) -> None:
    """Prepare decoder layers for perceptual weights; a second call for the same letters does nothing.

    Projections of layers and letters that never have weights get no hook.

    Args:
        layers: the decoder's.
        weights: tells which layers and letters have weights.
        source: returns the weights to work with, whenever a layer runs. By default they travel as the keyword
            `perceptual_weights` of the decoder's forward, not as state of a module: recomputation in the backward pass,
            which calls a layer again with the same keywords, finds the same ones. Decoders of transformers 4 do not
            pass keywords on to their layers and need a source.
    """
    for index, layer in enumerate(layers):
        own = weights.of_layer(index)
        points = {} if own is None else {letter: _point(layer, letter) for letter in (*own.outputs, "m")}
        if hasattr(layer.self_attn, MARK) and all(hasattr(point, MARK) for point in points.values()):
            continue
        with _installing:  # several threads may generate with one model
            enter = partial(_enter, index, source)
            _hook_once(layer.self_attn, "register_forward_pre_hook", enter, with_kwargs=True)
            for letter, point in points.items():
                if point is not layer.mlp:
                    _hook_once(point, "register_forward_hook", partial(_add, letter))
            if points:
                _hook_once(layer.mlp, "register_forward_hook", _finish, **ALWAYS)


def _point(layer: nn.Module, letter: str) -> nn.Module:
    return layer.mlp if letter == "m" else getattr(layer.self_attn, PROJECTIONS[letter])


def _hook_once(module: nn.Module, register: str, hook: Callable[..., Any], **options: Any) -> None:
    inner = getattr(module, "base_layer", None)
    if inner is not None and hasattr(inner, MARK):  # PEFT has wrapped it since: the update belongs outside
        getattr(inner, MARK).remove()
        delattr(inner, MARK)
    if not hasattr(module, MARK):
        setattr(module, MARK, getattr(module, register)(hook, **options))


def _enter(
    index: int,
    source: Callable[[], BoundWeights | None] | None,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    # The keyword is not for the attention function.
    weights = kwargs.pop("perceptual_weights", None) if source is None else source()
    own = None if weights is None else weights.of_layer(index)
    if own is None:
        _bound.set(None)
        return
    shared: dict[str, torch.Tensor] = {}
    hidden = args[0] if args else kwargs["hidden_states"]
    rows = weights.rows
    if next(iter(own.inputs.values())).device != hidden.device:  # a decoder on several devices
        own, rows = own.to(hidden.device), None if rows is None else rows.to(hidden.device)
    for letters, a in own.inputs.items():
        if letters[0] in SHARED:
            low = _low_rank(hidden, a, rows, weights.segments)
            shared.update(zip(letters, low.chunk(len(letters), dim=-1), strict=True))
    _bound.set(BoundLayer(own, rows, shared, weights.segments))


def _add(letter: str, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    bound = _bound.get()
    return None if bound is None else bound.add(letter, args[0], output)


def _finish(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor | None) -> torch.Tensor | None:
    """The MLP is the last part of a layer, so the shared state ends here.

    Also where the MLP raises (no output then), which is how recomputation stops early. Hooks on the layer itself would
    not work: recomputation calls its forward without them.
    """
    bound = _bound.get()
    _bound.set(None)
    return None if bound is None or output is None else bound.add("m", args[0], output)
