"""The resampler of the query-based connectors."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .mlp import build_projection
from .published_keys import map_resampler_keys
from .registry import BareParameters, Connector, setting
from .token_reducer import TokenSettings
from .vision_features import VisionFeatures


class MediaProjection(BareParameters):
    """Keys and values of all layers in one normalisation and one matrix product.

    They depend on the image only, not on the queries, and every layer normalises the same image. So the statistics
    are taken once, each layer's affine is folded into its weight, `LN(x) W = x' (g W) + b W`, and the stacked weights
    are applied together. Keys and values come from the image only: unlike in Flamingo's resampler the queries are
    not appended to them.
    """

    def __init__(self, width: int, depth: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.width, self.depth, self.heads = width, depth, heads
        self.norm_weight = nn.Parameter(torch.empty(depth, width))
        self.norm_bias = nn.Parameter(torch.empty(depth, width))
        self.to_kv = nn.Parameter(torch.empty(depth, 2 * heads * dim_head, width))  # of each layer first k, then v
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `LayerNorm` and `Linear` start."""
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        bound = 1 / math.sqrt(self.width)
        nn.init.uniform_(self.to_kv, -bound, bound)

    def forward(self, media: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`[B, 1+P, D]` -> for each layer keys and values `[B, heads, 1+P, dim_head]`."""
        normed = F.layer_norm(media, (self.width,))
        weight = (self.to_kv * self.norm_weight.unsqueeze(1)).flatten(0, 1)
        bias = (self.to_kv @ self.norm_bias.unsqueeze(2)).flatten()
        projected = F.linear(normed, weight, bias)  # [B, 1+P, depth * 2 * heads * dim_head]
        split = projected.unflatten(-1, (self.depth, 2, self.heads, -1)).permute(2, 3, 0, 4, 1, 5)
        return [(keys, values) for keys, values in split]


class ResamplerLayer(nn.Module):
    """Cross-attention from the queries to the image, then a feed-forward block, both residual."""

    def __init__(self, width: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ff_mult * width, bias=False),
            nn.GELU(),
            nn.Linear(ff_mult * width, width, bias=False),
        )

    def forward(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`query` `[B, T, D]`, `keys` and `values` `[B, heads, 1+P, dim_head]` -> `[B, T, D]`."""
        q = self.to_q(self.norm_latents(query)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, keys, values)
        query = query + self.to_out(attended.transpose(1, 2).flatten(2))
        return query + self.feed_forward(query)


class Resampler(nn.Module):
    """Queries gather the image through `depth` layers, then one LayerNorm.

    Args:
        width: D, width of queries and image.
        depth, heads, dim_head, ff_mult: as published 6, 8, 64, 4.
    """

    def __init__(self, width: int, depth: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.media = MediaProjection(width, depth, heads, dim_head)
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, dim_head, ff_mult) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, query: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
        """`query` `[B, T, D]`, `media` `[B, 1+P, D]` -> `[B, T, D]`; equivariant to the order of the queries."""
        for layer, (keys, values) in zip(self.layers, self.media(media), strict=True):
            query = layer(query, keys, values)
        return self.norm(query)


@dataclass
class ResamplerSettings(TokenSettings):
    """The settings of every connector with a resampler; the defaults are the published sizes."""

    mm_resampler_depth: int = setting(6, "Layers of the resampler.", minimum=1)
    mm_resampler_heads: int = setting(8, "Attention heads of the resampler.", minimum=1)
    mm_resampler_dim_head: int = setting(64, "Width of one resampler head.", minimum=1)
    mm_resampler_ff_mult: int = setting(4, "Feed-forward width of the resampler, in multiples of its width.", minimum=1)
    mm_resampler_dim: int | None = setting(None, "Width of the resampler; the ViT's if not given.", minimum=1)


class ResamplerConnector(Connector):
    """`y = MLP(Resampler(z, F))`, F `[B, 1+P, D]` with the class token, queries z by `queries` -> `[B, T, d]`."""

    def __init__(self, settings: ResamplerSettings, vision_width: int, llm_width: int) -> None:
        super().__init__()
        self.width = settings.mm_resampler_dim or vision_width
        self.num_visual_tokens = settings.mm_num_visual_tokens
        self.to_width = nn.Identity() if self.width == vision_width else nn.Linear(vision_width, self.width)
        self.resampler = Resampler(
            self.width,
            settings.mm_resampler_depth,
            settings.mm_resampler_heads,
            settings.mm_resampler_dim_head,
            settings.mm_resampler_ff_mult,
        )
        self.mlp = build_projection(settings.mm_projector_mlp, self.width, llm_width)

    def load_published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return map_resampler_keys(state)

    def queries(self, media: torch.Tensor, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        """-> `[B, T, D]`.

        Args:
            media: `features.hidden` in the resampler's width, `[B, 1+P, D]`.

        Raises:
            ValueError: an illegal number of tokens; names the legal ones.
        """
        raise NotImplementedError

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> torch.Tensor:
        """-> visual tokens `[B, T, d]`, in the order of the queries."""
        media = self.to_width(features.hidden)
        budget = self.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
        query = self.queries(media, features, budget)
        return self.mlp(self.resampler(query, media))
