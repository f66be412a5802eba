"""The class token's attention row of one CLIP block, without materialising any other attention map."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def class_token_attention(layer: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the class token to the patches inside one encoder block.

    Args:
        layer: a `CLIPEncoderLayer` of transformers.
        hidden: `[B, 1+P, D]`, the block's input.

    Returns:
        `[B, H, P]` float32, softmax over all `1+P` tokens, the class column then dropped, not renormalised; and the
        patches' keys `[B, P, D]` that it was made from. The logits are cast to float32 before the softmax so that
        half-precision runs have few ties.
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    batch, tokens, width = normed.shape
    heads = attention.num_heads
    query = attention.q_proj(normed[:, :1]).view(batch, heads, 1, width // heads)
    keys = attention.k_proj(normed)
    per_head = keys.view(batch, tokens, heads, width // heads).transpose(1, 2)
    with full_precision(normed.device):  # autocast would take the product back to half precision
        logits = (query.float() @ per_head.float().transpose(2, 3)).squeeze(2) * attention.scale  # [B, H, 1+P]
    return logits.softmax(dim=-1)[..., 1:], keys[:, 1:]


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switches autocast off; the meta device, on which steps are checked without memory, knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
