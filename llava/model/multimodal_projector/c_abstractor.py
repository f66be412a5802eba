"""C-Abstractor: convolutions around adaptive pooling (Honeybee, arXiv 2312.06742)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from .mlp import build_projection
from .published_keys import map_abstractor_keys
from .registry import BareParameters, Connector, register_connector, setting
from .token_reducer import TokenSettings
from .vision_features import VisionFeatures


class ChannelLayerNorm(nn.LayerNorm):  # "LayerNorm" in the name tells transformers how to initialise it
    """LayerNorm over the channels of a map `[B, D, h, w]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """1x1, 3x3 depthwise, squeeze-excite, 1x1, residual; maps `[B, D, h, w]` -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.norm1 = ChannelLayerNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = ChannelLayerNorm(width)
        self.squeeze = nn.Conv2d(width, round(width / 4), 1)
        self.excite = nn.Conv2d(round(width / 4), width, 1)
        self.conv3 = nn.Conv2d(width, width, 1, bias=False)
        self.norm3 = ChannelLayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        y = F.silu(self.norm2(self.conv2(y)))
        gate = self.excite(F.silu(self.squeeze(y.mean(dim=(2, 3), keepdim=True))))
        y = self.norm3(self.conv3(y * gate.sigmoid()))
        return F.silu(y + x)


@dataclass
class CAbstractorConfig(TokenSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    mm_num_visual_tokens: int = setting(144, "A square number of tokens; 145 means 144, too.", minimum=1)
    mm_abstractor_depth: int = setting(3, "Convolution blocks before, and again after, the pooling.", minimum=1)
    mm_abstractor_position_side: int = setting(
        0, "Patches per side of a learned position embedding (24 for CLIP-L/336); 0: none, as in AcFormer.", minimum=0
    )


@register_connector("c_abstractor", CAbstractorConfig)
class CAbstractor(Connector, BareParameters):
    """`y = MLP(stage_2(pool_h(stage_1(patches))))`, F `[B, 1+P, D]` without class token -> `[B, h*h, d]`, row-major."""

    is_elastic: ClassVar[bool] = True

    def __init__(self, settings: CAbstractorConfig, vision_width: int, llm_width: int) -> None:
        super().__init__()
        depth, side = settings.mm_abstractor_depth, settings.mm_abstractor_position_side
        self.num_visual_tokens = settings.mm_num_visual_tokens
        self.position_side = side  # kept beside the parameter, which is empty while ZeRO-3 has it in pieces
        self.position = nn.Parameter(torch.zeros(vision_width, side, side)) if side else None
        self.before = nn.Sequential(*(ConvBlock(vision_width) for _ in range(depth)))
        self.after = nn.Sequential(*(ConvBlock(vision_width) for _ in range(depth)))
        self.mlp = build_projection(settings.mm_projector_mlp, vision_width, llm_width)

    def reset_parameters(self) -> None:
        if self.position is not None:
            nn.init.zeros_(self.position)

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        side = math.isqrt(num_patches)
        if self.position_side not in (0, side):
            raise ValueError(
                f"mm_abstractor_position_side is {self.position_side}, but the tower has {side} patches per side"
            )
        return _pooled_side(wanted, side) ** 2

    def load_published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return map_abstractor_keys(state)

    def abstract(self, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        """-> `[B, h*h, D]`, before the MLP.

        Raises:
            ValueError: the number of tokens is no square, or larger than the patch grid.
        """
        patches = features.patches.transpose(1, 2)  # [B, D, P]
        side = math.isqrt(patches.shape[2])
        pooled_side = _pooled_side(num_visual_tokens, side)
        x = patches.unflatten(2, (side, side))
        x = self.before(x if self.position is None else x + self.position)
        return self.after(F.adaptive_avg_pool2d(x, pooled_side)).flatten(2).transpose(1, 2)

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> torch.Tensor:
        """-> visual tokens `[B, h*h, d]`."""
        budget = self.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
        return self.mlp(self.abstract(features, budget))


def _pooled_side(num_visual_tokens: int, side: int) -> int:
    """h of `h*h` tokens; `h*h + 1`, the budget of the connectors that keep the class token, means the same."""
    pooled_side = math.isqrt(num_visual_tokens)
    if num_visual_tokens - pooled_side**2 not in (0, 1) or not 1 <= pooled_side <= side:
        raise ValueError(
            f"mm_num_visual_tokens {num_visual_tokens} is not a square number of tokens from a {side}x{side} patch "
            f"grid. Legal values for this tower are 1, 4, 9, ..., {side**2} (or one more each, which means the same)"
        )
    return pooled_side
