"""One call of a model's `forward` or `generate`, and the weights that images give it.

The weights are gone when the call returns; a cache filled in it must not be used afterwards. What the same model is
asked inside a running `generate` sees the same images.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import isgenerator
from typing import Any

import torch

from llava.model.multimodal_projector.perceptual_weights import BoundWeights, PerceptualWeights

from .vision import connector_of

MARK = "_carries_image_weights"  # attribute of methods that do


@dataclass
class Call:
    """One call of `forward` or `generate`.

    Attributes:
        model: which is called.
        images: that it was given.
        rows: which images each row of the batch shows.
        weights: of the rows with an image.
        slots: `[B, n]` bool, the positions of images that nothing attends to; None if images keep their tokens.
        padding: `[B, n]` bool, the prompt's padding; older code bases forget it when decoding.
        bound: the weights as layers use them, by number of rows (beam search repeats rows).
    """

    model: Any
    images: Any = None
    rows: list[list[int]] | None = None
    weights: PerceptualWeights | None = None
    slots: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    bound: dict[int, BoundWeights] = field(default_factory=dict)


current_call: ContextVar[Call | None] = ContextVar("call_with_image_weights", default=None)
# What the layers work with that run now in this thread.
in_use: ContextVar[BoundWeights | None] = ContextVar("weights_in_use", default=None)


def weights_in_use() -> BoundWeights | None:
    """What the layers work with that run now in this thread.

    A function, because hooks must not hold the variable: it cannot be pickled or copied.
    """
    return in_use.get()


def carry_weights(model_class: type) -> None:
    """Let `forward` and `generate` of a causal language model carry image weights; to be called on every subclass."""
    for name in ("forward", "generate"):
        method = getattr(model_class, name, None)
        if method is not None and (name in vars(model_class) or not hasattr(method, MARK)):
            setattr(model_class, name, _as_call(method))


def _as_call(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def with_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        connector, outer = connector_of(self), current_call.get()
        is_inner = outer is not None and outer.model is self  # generate calls forward
        if connector is None or connector.space == "input" or is_inner:
            return method(self, *args, **kwargs)
        call, weights = current_call.set(Call(self)), in_use.set(None)
        try:
            result = method(self, *args, **kwargs)
        finally:
            current_call.reset(call)
            in_use.reset(weights)
        if isgenerator(result):
            raise TypeError(
                f"{type(self).__name__}.{method.__name__} is a generator: it would run after the images are gone. Use "
                "a streamer, or a connector that makes visual tokens"
            )
        return result

    setattr(with_weights, MARK, True)
    return with_weights
