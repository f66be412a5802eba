"""E-ViT: the visual anchors and one token for all other patches (arXiv 2202.07800)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .registry import register_connector, setting
from .token_reducer import AnchorSettings, TokenReducer, TokenSettings
from .vision_features import VisionFeatures
from .visual_anchors import count_anchor_tokens, gather_tokens, select_visual_anchors


@dataclass
class EvitConfig(AnchorSettings, TokenSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    mm_num_visual_tokens: int = setting(146, "Class token, anchors and one fused token; 145 means 146, too.", minimum=1)
    mm_evit_normalize: bool = setting(True, "Divide the fused token by the sum of its weights.", at_load=True)


@register_connector("evit", EvitConfig)
class Evit(TokenReducer):
    """`y = MLP([F[anchors(A)]; sum_j w_j F_j / sum_j w_j])` over the patches j that are not anchors -> `[B, T, d]`.

    w is the class token's attention, averaged over the heads. A number of tokens that is legal for `acformer` (65, 145,
    257) gives the same anchors and one token more.
    """

    needs_cls_attention: ClassVar[bool] = True

    def __init__(self, settings: EvitConfig, vision_width: int, llm_width: int) -> None:
        super().__init__(settings, vision_width, llm_width)
        self.normalize = settings.mm_evit_normalize

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        return _count_anchors(wanted, num_heads, num_patches) + 2

    def reduce(self, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        attention, hidden = features.cls_attention, features.hidden
        indices = select_visual_anchors(attention, _count_anchors(num_visual_tokens, *attention.shape[1:]))
        weights = attention.mean(dim=1)  # [B, P]
        weights = torch.cat([weights.new_zeros(len(weights), 1), weights], dim=1).scatter(1, indices, 0.0)
        if self.normalize:
            weights = weights / weights.sum(dim=1, keepdim=True)
        fused = weights.to(hidden.dtype).unsqueeze(1) @ hidden  # [B, 1, D]
        return torch.cat([gather_tokens(hidden, indices), fused], dim=1)


def _count_anchors(num_visual_tokens: int, num_heads: int, num_patches: int) -> int:
    """Anchors under a budget that counts the fused token, or leaves it out as AcFormer's budgets do.

    Raises:
        ValueError: too few or too many; one patch at least must be left to be fused.
    """
    leaves_it_out = num_heads > 1 and (num_visual_tokens - 1) % num_heads == 0
    anchors = count_anchor_tokens(num_visual_tokens - (0 if leaves_it_out else 1), num_heads, num_patches) - 1
    if anchors == num_patches:
        raise ValueError(
            f"mm_num_visual_tokens {num_visual_tokens} makes all {num_patches} patches anchors and leaves none to "
            f"fuse. Use {num_patches - num_heads + 2} at most"
        )
    return anchors
