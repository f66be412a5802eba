"""The cross entropy at the positions that have a label, some of them at a time.

torch's own `linear_cross_entropy` (2.13) does not fit: of half-precision inputs it returns the loss in half precision,
off by up to 0.4 %, and it takes no weight per target.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from llava.model.sequence_plan import LossPlan

ROWS_AT_ONCE = 1024  # logits of 1024 positions and 32000 tokens take 125 MiB in float32


class LanguageHead(nn.Linear):
    """The output layer. Called with a `LossPlan` it returns the loss, whose logits never exist all at once.

    The loss is part of this module's call, so that ZeRO-3 gathers its weight once, with any number of chunks.
    """

    def forward(self, hidden: torch.Tensor, loss: LossPlan | None = None) -> torch.Tensor:
        """`[..., d]` -> logits `[..., V]`; or hidden states `[R, n, d]` -> the loss, a float32 scalar."""
        if loss is None:
            return super().forward(hidden)
        logits_of = partial(F.linear, weight=self.weight, bias=self.bias)
        return _chunked(logits_of, _labelled(hidden, loss), loss, ROWS_AT_ONCE)


def label_loss(head: nn.Module, hidden: torch.Tensor, loss: LossPlan) -> torch.Tensor:
    """The loss of hidden states `[R, n, d]` by any output layer: adapted, quantised or plain."""
    if isinstance(head, LanguageHead):
        return head(hidden, loss)
    rows = _labelled(hidden, loss)
    # Every call of a partitioned layer is a collective operation, of which all processes must do equally many.
    is_partitioned = any(hasattr(parameter, "ds_id") for parameter in head.parameters())
    return _chunked(head, rows, loss, max(len(rows), 1) if is_partitioned else ROWS_AT_ONCE)


def _labelled(hidden: torch.Tensor, loss: LossPlan) -> torch.Tensor:
    return hidden.flatten(0, -2).index_select(0, loss.places)


def _chunked(
    logits_of: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, loss: LossPlan, at_once: int
) -> torch.Tensor:
    """The weighted sum over chunks, whose logits are computed again in the backward pass."""

    def of_chunk(states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        each = F.cross_entropy(logits_of(states).float(), targets, reduction="none")
        return each.sum() / max(len(rows), 1) if weights is None else each @ weights

    total = rows.new_zeros((), dtype=torch.float32)
    for start in range(0, max(len(rows), 1), at_once):  # also without any label, so that every weight has a gradient
        chunk = slice(start, start + at_once)
        weights = None if loss.weights is None else loss.weights[chunk]
        total = total + checkpoint(of_chunk, rows[chunk], loss.targets[chunk], weights, use_reentrant=False)
    return total
