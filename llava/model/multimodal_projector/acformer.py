"""AcFormer: visual anchors as queries (arXiv 2405.17815)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .registry import register_connector
from .resampler import ResamplerConnector, ResamplerSettings
from .token_reducer import AnchorSettings
from .vision_features import VisionFeatures
from .visual_anchors import count_anchor_tokens, gather_tokens, select_visual_anchors


@dataclass
class AcFormerConfig(AnchorSettings, ResamplerSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""


@register_connector("acformer", AcFormerConfig)
class AcFormer(ResamplerConnector):
    """`z = F[anchors(A)]`; `y = MLP(Resampler(z, F))`, with F `[B, 1+P, D]` and A the class token's attention.

    The tokens `[B, T, d]` are the class token's, then the anchors' in ascending patch order. The queries are drawn from
    the image, not learned, so the weights do not depend on the number of visual tokens.
    """

    needs_cls_attention: ClassVar[bool] = True
    is_elastic: ClassVar[bool] = True

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        return count_anchor_tokens(wanted, num_heads, num_patches)

    def queries(self, media: torch.Tensor, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        return gather_tokens(media, select_visual_anchors(features.cls_attention, num_visual_tokens - 1))
