"""Attention for planned batches: causal within every sequence, without a mask where none is needed.

transformers' own implementations find the borders of packed sequences and the padding on the device, which costs a
synchronisation. Here both come from an `AttentionPlan`. Calls without one, such as `generate`, run as sdpa.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_flash_attention_utils import _flash_attention_forward

from llava.model.sequence_plan import AttentionPlan

PLANNED_SDPA, PLANNED_FLASH = "planned_sdpa", "planned_flash"


@dataclass(frozen=True)
class PreparedAttention:
    """What every layer of one forward pass shares.

    Attributes:
        plan: of the batch, on the device.
        masks: per sequence of a packed batch, or one for all rows of another: `[*, 1, n, n]` bool, True where a query
            attends to a key; None where causal attention is enough.
    """

    plan: AttentionPlan
    masks: tuple[torch.Tensor | None, ...]


def prepare_attention(
    plan: AttentionPlan, length: int, device: torch.device, window: int | None = None
) -> PreparedAttention:
    """Make the masks that a batch needs.

    Args:
        plan: on the device.
        length: n, positions per row.
        device: the decoder's.
        window: sliding window of the decoder, in positions.
    """
    lengths = plan.lengths if plan.lengths is not None else (length,)
    visible: Sequence[torch.Tensor | None] = [None] * len(lengths)
    if plan.visible is not None:
        visible = plan.visible.split(lengths, dim=1)
    masks = tuple(_mask(n, seen, window, device) for n, seen in zip(lengths, visible, strict=True))
    return PreparedAttention(plan, masks)


def _mask(length: int, visible: torch.Tensor | None, window: int | None, device: torch.device) -> torch.Tensor | None:
    is_windowed = window is not None and length > window
    if visible is None and not is_windowed:
        return None
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if is_windowed:
        mask = mask.triu(1 - window)
    mask = mask[None, None]
    return mask if visible is None else mask & visible[:, None, None, :]


def planned_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    attention_plan: PreparedAttention | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers, on torch's fused attention; one call per sequence of a packed batch.

    Args:
        query, key, value: `[R, heads, n, head_dim]`, fewer heads in key and value for grouped queries.
        attention_mask: ignored where there is a plan.

    Returns:
        `[R, n, heads, head_dim]`, and None for the attention map.
    """
    if attention_plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    lengths, masks = attention_plan.plan.lengths, attention_plan.masks
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, masks[0], dropout, scaling)
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), masks, strict=True)
    attended = [sdpa_attention_forward(module, q, k, v, mask, dropout, scaling)[0] for q, k, v, mask in parts]
    return torch.cat(attended, dim=1), None


def planned_flash_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    attention_plan: PreparedAttention | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`planned_attention` on FlashAttention's kernels; its kernel for several sequences takes a packed batch whole."""
    if attention_plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    plan = attention_plan.plan
    borders = {}
    if plan.lengths is not None:
        borders = {"cu_seq_lens_q": plan.borders, "cu_seq_lens_k": plan.borders}
        borders |= {"max_length_q": plan.longest, "max_length_k": plan.longest}
    attended = _flash_attention_forward(
        *(x.transpose(1, 2) for x in (query, key, value)),
        None,
        query_length=query.shape[2],
        is_causal=True,
        dropout=dropout,
        softmax_scale=scaling,
        sliding_window=sliding_window,
        target_dtype=get_target_dtype(query, module),
        attn_implementation="flash_attention_2",
        **borders,
    )
    return attended, None


for _name, _function in ((PLANNED_SDPA, planned_attention), (PLANNED_FLASH, planned_flash_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)
