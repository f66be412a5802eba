"""The plain projectors of LLaVA (contract package.md 7): linear, MLP, identity. They take patch tokens `[B, P, D]`."""

import re
from typing import Any

from torch import nn


class IdentityMap(nn.Module):
    """Hands the features over unchanged."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x

    @property
    def config(self) -> dict[str, str]:
        return {"mm_projector_type": "identity"}


class SimpleResBlock(nn.Module):
    """LayerNorm, then a residual two-layer MLP of constant width. Public, though no projector uses it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Any) -> Any:
        x = self.pre_norm(x)
        return x + self.proj(x)


def mlp_depth(projector_type: str) -> int | None:
    """k of `mlp<k>x_gelu`, or None for any other name."""
    match = re.match(r"^mlp([1-9]\d*)x_gelu$", projector_type)
    return int(match.group(1)) if match else None


def build_mlp(depth: int, in_width: int, out_width: int) -> nn.Sequential:
    """`depth` linear layers with an exact GELU between each two; keys `0.*`, `2.*`, `4.*`, ..."""
    layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*layers)


def build_projection(mlp_type: str, in_width: int, out_width: int) -> nn.Sequential:
    """The MLP at the end of a connector, from its setting `mm_projector_mlp`.

    Raises:
        ValueError: `mlp_type` is not `mlp<k>x_gelu`.
    """
    depth = mlp_depth(mlp_type)
    if depth is None:
        raise ValueError(f"mm_projector_mlp must be mlp<k>x_gelu, for example mlp2x_gelu, not {mlp_type!r}")
    return build_mlp(depth, in_width, out_width)
