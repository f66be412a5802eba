"""Top-P: the visual anchors without a resampler."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .registry import register_connector
from .token_reducer import AnchorSettings, TokenReducer, TokenSettings
from .vision_features import VisionFeatures
from .visual_anchors import count_anchor_tokens, gather_tokens, select_visual_anchors


@dataclass
class TopPConfig(AnchorSettings, TokenSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""


@register_connector("top_p", TopPConfig)
class TopP(TokenReducer):
    """`y = MLP(F[anchors(A)])`: class token and anchors, ascending, F `[B, 1+P, D]` -> `[B, T, d]`."""

    needs_cls_attention: ClassVar[bool] = True

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        return count_anchor_tokens(wanted, num_heads, num_patches)

    def reduce(self, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        return gather_tokens(features.hidden, select_visual_anchors(features.cls_attention, num_visual_tokens - 1))
