"""The resampler shared by the query-based connectors (contract acformer.md 3)."""

import torch
import torch.nn.functional as F
from torch import nn


class ResamplerLayer(nn.Module):
    """Cross-attention from the queries to the picture, then a feed-forward block, both residual.

    Keys and values come from the picture only: unlike Flamingo's resampler the queries are not appended to them.
    """

    def __init__(self, width: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ff_mult * width, bias=False),
            nn.GELU(),
            nn.Linear(ff_mult * width, width, bias=False),
        )

    def forward(self, query: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
        """`query` `[B, T, D]`, `media` `[B, 1+P, D]` -> `[B, T, D]`."""
        q = self._heads(self.to_q(self.norm_latents(query)))
        k, v = self.to_kv(self.norm_media(media)).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(q, self._heads(k), self._heads(v))
        query = query + self.to_out(attended.transpose(1, 2).flatten(2))
        return query + self.feed_forward(query)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, n, inner]` -> `[B, heads, n, dim_head]`; heads are contiguous slices of the inner width."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Resampler(nn.Module):
    """Queries gather the picture through `depth` layers, then one LayerNorm.

    Args:
        width: D, width of queries and picture.
        depth, heads, dim_head, ff_mult: as published 6, 8, 64, 4.
    """

    def __init__(self, width: int, depth: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, dim_head, ff_mult) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, query: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
        """`query` `[B, T, D]`, `media` `[B, 1+P, D]` -> `[B, T, D]`; equivariant to the order of the queries."""
        for layer in self.layers:
            query = layer(query, media)
        return self.norm(query)
