"""Pooling: means of square blocks of patches."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .registry import register_connector
from .token_reducer import TokenReducer, TokenSettings
from .vision_features import VisionFeatures


def pooling_stride(num_visual_tokens: int, num_patches: int) -> int:
    """Side of the blocks, in patches, that leaves `num_visual_tokens`, class token counted.

    Raises:
        ValueError: no block size that divides the patch grid does; names the legal numbers.
    """
    side = math.isqrt(num_patches)
    strides = {(side // s) ** 2 + 1: s for s in range(side, 0, -1) if side % s == 0}
    if num_visual_tokens not in strides:
        raise ValueError(
            f"mm_num_visual_tokens {num_visual_tokens} does not come from pooling a {side}x{side} patch grid in equal "
            f"blocks. Legal values for this tower are {', '.join(map(str, strides))}"
        )
    return strides[num_visual_tokens]


def pool_patches(hidden: torch.Tensor, num_visual_tokens: int) -> torch.Tensor:
    """`[B, 1+P, D]` -> `[B, T, D]`: the class token, then the blocks' means, row-major.

    Raises:
        ValueError: see `pooling_stride`.
    """
    patches = hidden[:, 1:].transpose(1, 2)  # [B, D, P]
    side = math.isqrt(patches.shape[2])
    stride = pooling_stride(num_visual_tokens, patches.shape[2])
    means = F.avg_pool2d(patches.unflatten(2, (side, side)), stride).flatten(2).transpose(1, 2)
    return torch.cat([hidden[:, :1], means], dim=1)


@dataclass
class PoolingConfig(TokenSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""


@register_connector("pooling", PoolingConfig)
class Pooling(TokenReducer):
    """`y = MLP([F_cls; mean of every s x s block of patches])`, F `[B, 1+P, D]` -> `[B, P/s^2 + 1, d]`."""

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        pooling_stride(wanted, num_patches)
        return wanted

    def reduce(self, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        return pool_patches(features.hidden, num_visual_tokens)
