"""Attention over cache slots, through the model's own forward.

The model runs with this module's attention function. A forward with `kv_step` belongs to the engine: the function
writes the new keys and values into their slots and attends to the slots' contents. Any other forward (training,
`generate`) uses the fused attention of transformers, unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llava.serve.engine.kv_slots import Slab, Slot

NAME = "sdpa_slotted"


class KVStep(Protocol):
    """One forward's view of the slots."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """Store `k`, `v` `[B, heads, n, head_dim]` and attend with `q`; returns `[B, n, heads, head_dim]`."""


def slotted_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    kv_step: KVStep | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function for `AttentionInterface` of transformers."""
    if kv_step is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    return kv_step.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


AttentionInterface.register(NAME, slotted_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_slotted_attention(model: PreTrainedModel) -> None:
    """Make a language model accept `kv_step`; any other call gives the results of `sdpa`."""
    model.set_attn_implementation(NAME)


@dataclass(frozen=True)
class _Group:
    """Rows `start:stop` of the batch, all in one slab; `mask` is additive, `[lanes in reach, 1, 1, n]`."""

    slab: Slab
    start: int
    stop: int
    lanes: torch.Tensor
    positions: torch.Tensor
    reach: int
    is_dense: bool  # row i of the group is lane i
    mask: torch.Tensor


class DecodeStep:
    """One new token for each of many requests, `[B, 1, d]`.

    Args:
        slots: of the rows; rows of one slab are adjacent, in the order of their lanes.
        dtype: of the mask.
        window: sliding window of the model in positions; None: no window.
    """

    def __init__(self, slots: Sequence[Slot], dtype: torch.dtype, window: int | None) -> None:
        self.groups: list[_Group] = []
        start = 0
        while start < len(slots):
            slab = slots[start].slab
            stop = start + 1
            while stop < len(slots) and slots[stop].slab is slab:
                stop += 1
            self.groups.append(_decode_group(slab, slots[start:stop], start, dtype, window))
            start = stop

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        parts = [_attend_group(group, layer, q, k, v, scaling) for group in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode_group(slab: Slab, slots: Sequence[Slot], start: int, dtype: torch.dtype, window: int | None) -> _Group:
    device = slab.visible.device
    lanes = torch.tensor([slot.lane for slot in slots], device=device)
    positions = torch.tensor([slot.filled for slot in slots], device=device)
    slab.visible[lanes, positions] = True
    reach, end = slots[-1].lane + 1, max(slot.filled for slot in slots) + 1
    visible = slab.visible[:reach, :end]
    if window is not None:
        newest = torch.zeros(reach, dtype=torch.long, device=device).index_copy(0, lanes, positions)
        visible = visible & (torch.arange(end, device=device) > (newest - window).unsqueeze(1))
    # The lowest number, not -inf: an unused lane is masked completely, and must not become NaN.
    mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)
    return _Group(slab, start, start + len(slots), lanes, positions, reach, reach == len(slots), mask[:, None, None])


def _attend_group(
    group: _Group, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
) -> torch.Tensor:
    keys, values = group.slab.keys[layer], group.slab.values[layer]
    rows = slice(group.start, group.stop)
    lanes, positions, mask = (x.to(q.device) for x in (group.lanes, group.positions, group.mask))
    keys[lanes, :, positions] = k[rows, :, 0]
    values[lanes, :, positions] = v[rows, :, 0]
    # Query heads that share a key head take the place of positions: [B, kv heads, heads per kv head, head_dim].
    q = q[rows].reshape(-1, keys.shape[1], q.shape[1] // keys.shape[1], q.shape[3])
    if not group.is_dense:
        q = q.new_zeros(group.reach, *q.shape[1:]).index_copy(0, lanes, q)
    end = mask.shape[-1]
    out = scaled_dot_product_attention(
        q, keys[: group.reach, :, :end], values[: group.reach, :, :end], attn_mask=mask, scale=scaling
    )
    if not group.is_dense:
        out = out[lanes]
    return out.reshape(len(out), 1, -1, q.shape[3])


@dataclass(frozen=True)
class Segment:
    """Tokens `start:stop` of the packed row of a `PrefillStep`, which are appended to `slot`.

    Attributes:
        visible: `[stop - start]`, False at positions that are never attended to.
    """

    slot: Slot
    start: int
    stop: int
    visible: torch.Tensor


class PrefillStep:
    """Pieces of several prompts, packed into one row `[1, n, d]`; each attends to its own request only."""

    def __init__(self, segments: Sequence[Segment], window: int | None) -> None:
        self.parts = [(segment, _prefill_mask(segment, window)) for segment in segments]

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        parts = []
        for segment, mask in self.parts:
            slab, lane = segment.slot.slab, segment.slot.lane
            rows, first = slice(segment.start, segment.stop), segment.slot.filled
            end = first + segment.stop - segment.start
            keys, values = slab.keys[layer], slab.values[layer]
            keys[lane, :, first:end] = k[0, :, rows]
            values[lane, :, first:end] = v[0, :, rows]
            out = scaled_dot_product_attention(
                q[:, :, rows],
                keys[lane : lane + 1, :, :end],
                values[lane : lane + 1, :, :end],
                attn_mask=None if mask is None else mask.to(q.device),
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=q.shape[1] != keys.shape[1],
            )
            parts.append(out.transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _prefill_mask(segment: Segment, window: int | None) -> torch.Tensor | None:
    """`[n, positions so far + n]`, True where attended; None if plainly causal."""
    slot, count = segment.slot, segment.stop - segment.start
    end = slot.filled + count
    slot.slab.visible[slot.lane, slot.filled : end] = segment.visible
    if slot.filled == 0 and bool(segment.visible.all()) and (window is None or count <= window):
        return None
    device = segment.visible.device
    queries = torch.arange(slot.filled, end, device=device).unsqueeze(1)
    keys = torch.arange(end, device=device)
    mask = (keys <= queries) & slot.slab.visible[slot.lane, :end]
    return mask if window is None else mask & (keys > queries - window)
