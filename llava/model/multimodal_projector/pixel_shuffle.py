"""Pixel shuffle: space-to-depth, then an MLP (InternVL 1.5, arXiv 2404.16821; Qwen2-VL's merger, arXiv 2409.12191)."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from .mlp import build_projection
from .registry import Connector, register_connector, setting
from .vision_features import VisionFeatures


@dataclass
class PixelShuffleConfig:
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    mm_num_visual_tokens: int = setting(144, "Patches / factor^2; 145 means 144, too.", minimum=1)
    mm_pixel_shuffle_factor: int = setting(2, "Side of the blocks of patches that become one token.", minimum=1)
    mm_projector_mlp: str = setting("mlp2x_gelu", "Projection to the language model: mlp<k>x_gelu.")


@register_connector("pixel_shuffle", PixelShuffleConfig)
class PixelShuffle(Connector):
    """`y = MLP(LN([patches of an s x s block side by side]))`, F `[B, 1+P, D]` without class token -> `[B, P/s^2, d]`.

    Nothing is thrown away or averaged: a token is s^2 times as wide before the MLP. Blocks are row-major, so are the
    patches within one.
    """

    def __init__(self, settings: PixelShuffleConfig, vision_width: int, llm_width: int) -> None:
        super().__init__()
        self.factor = settings.mm_pixel_shuffle_factor
        self.num_visual_tokens = settings.mm_num_visual_tokens
        width = vision_width * self.factor**2
        self.norm = nn.LayerNorm(width)
        self.mlp = build_projection(settings.mm_projector_mlp, width, llm_width)

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        side = math.isqrt(num_patches)
        if side % self.factor:
            raise ValueError(f"mm_pixel_shuffle_factor {self.factor} does not divide the {side}x{side} patch grid")
        tokens = (side // self.factor) ** 2
        if wanted not in (tokens, tokens + 1):
            raise ValueError(
                f"mm_num_visual_tokens {wanted} does not fit mm_pixel_shuffle_factor {self.factor}, which makes "
                f"{tokens} tokens of this tower's {side}x{side} patches; legal are {tokens} and {tokens + 1} (the "
                "same), or another factor"
            )
        return tokens

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> torch.Tensor:
        """-> visual tokens `[B, P / factor^2, d]`."""
        patches, s = features.patches, self.factor
        blocks = math.isqrt(patches.shape[1]) // s
        x = patches.unflatten(1, (blocks, s, blocks, s))  # [B, row, s, column, s, D]
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)  # [B, rows * columns, s * s * D]
        return self.mlp(self.norm(x))
