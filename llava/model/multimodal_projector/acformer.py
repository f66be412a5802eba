"""AcFormer: visual anchors as queries (arXiv 2405.17815; contract acformer.md 2-4, 6)."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.model.multimodal_projector.mlp import build_mlp, mlp_depth
from llava.model.multimodal_projector.published_keys import map_resampler_keys
from llava.model.multimodal_projector.registry import Connector, register_connector, setting
from llava.model.multimodal_projector.resampler import Resampler
from llava.model.vision_features import VisionFeatures
from llava.model.visual_anchors import num_anchors_per_head, select_visual_anchors

logger = logging.getLogger(__name__)


@dataclass
class AcFormerConfig:
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    mm_num_visual_tokens: int = setting(
        145, "Visual tokens per picture: the class token and a multiple of the ViT's heads."
    )
    mm_resampler_depth: int = setting(6, "Layers of the resampler.")
    mm_resampler_heads: int = setting(8, "Attention heads of the resampler.")
    mm_resampler_dim_head: int = setting(64, "Width of one resampler head.")
    mm_resampler_ff_mult: int = setting(4, "Feed-forward width of the resampler, in multiples of its width.")
    mm_resampler_dim: int | None = setting(None, "Width of the resampler; the ViT's if not given.")
    mm_projector_mlp: str = setting("mlp2x_gelu", "Projection from the resampler to the language model.")


@register_connector("acformer", AcFormerConfig)
class AcFormer(Connector):
    """`z = F[anchors(A)]`; `y = MLP(Resampler(z, F))`, with F `[B, 1+P, D]` and A the class token's attention.

    The queries are drawn from the picture, not learned, so the number of visual tokens is not built into the weights.
    """

    needs_cls_attention = True

    def __init__(self, settings: AcFormerConfig, vision_width: int, llm_width: int) -> None:
        super().__init__()
        depth = mlp_depth(settings.mm_projector_mlp)
        if depth is None:
            raise ValueError(
                f"mm_projector_mlp must be mlp<k>x_gelu, for example mlp2x_gelu, not {settings.mm_projector_mlp!r}"
            )
        if settings.mm_num_visual_tokens < 2:
            raise ValueError(
                f"mm_num_visual_tokens is {settings.mm_num_visual_tokens}; it counts the class token and >= 1 anchor"
            )
        width = settings.mm_resampler_dim or vision_width
        self.num_visual_tokens = settings.mm_num_visual_tokens
        self.to_width = nn.Identity() if width == vision_width else nn.Linear(vision_width, width)
        self.resampler = Resampler(
            width,
            settings.mm_resampler_depth,
            settings.mm_resampler_heads,
            settings.mm_resampler_dim_head,
            settings.mm_resampler_ff_mult,
        )
        self.mlp = build_mlp(depth, width, llm_width)

    def check_tower(self, num_heads: int, num_patches: int) -> None:
        wanted = self.num_visual_tokens
        per_head = num_anchors_per_head(wanted - 1, num_heads, num_patches)
        self.num_visual_tokens = per_head * num_heads + 1
        if self.num_visual_tokens != wanted:
            logger.warning(
                "mm_num_visual_tokens %d is not 1 + a multiple of the tower's %d heads: %d tokens are used.",
                wanted,
                num_heads,
                self.num_visual_tokens,
            )

    def load_published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return map_resampler_keys(state)

    def forward(self, features: VisionFeatures) -> torch.Tensor:
        """-> visual tokens `[B, T, d]`: the class token first, then the anchors in ascending patch order."""
        indices = select_visual_anchors(features.cls_attention, self.num_visual_tokens - 1)  # [B, T]
        query = features.hidden.gather(1, indices.unsqueeze(-1).expand(-1, -1, features.hidden.shape[-1]))
        return self.mlp(self.resampler(self.to_width(query), self.to_width(features.hidden)))
