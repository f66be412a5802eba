"""Pooling-PR: pooled patches as queries of the resampler."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .pooling import pool_patches, pooling_stride
from .registry import register_connector
from .resampler import ResamplerConnector, ResamplerSettings
from .vision_features import VisionFeatures


@dataclass
class PoolingPrConfig(ResamplerSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""


@register_connector("pooling_pr", PoolingPrConfig)
class PoolingPr(ResamplerConnector):
    """`z = [F_cls; block means]`; `y = MLP(Resampler(z, F))`, F `[B, 1+P, D]` -> `[B, P/s^2 + 1, d]`."""

    is_elastic: ClassVar[bool] = True

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        pooling_stride(wanted, num_patches)
        return wanted

    def queries(self, media: torch.Tensor, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        return pool_patches(media, num_visual_tokens)
