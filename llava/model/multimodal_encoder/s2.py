"""Multi-scale features by tiling (S2, arXiv 2403.13043)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

S2_DEFAULT_SCALES = "336,672,1008"


def parse_scales(text: str) -> list[int]:
    """`"672,336"` -> `[336, 672]`, ascending pixels."""
    return sorted(int(part) for part in text.split(","))


def forward_multiscale(
    encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, scales: list[int]
) -> torch.Tensor:
    """Encode the images at every scale and concatenate on the channels, smallest scale first.

    Args:
        encode: `[M, 3, s, s]` -> `[M, P, D]` with s the smallest scale and P a square number.
        images: `[N, 3, H, H]`.
        scales: ascending side lengths in pixels; each must be a multiple of its tile count.

    Returns:
        `[N, P, D * len(scales)]`.

    Raises:
        ValueError: the images are not square, or a scale cannot be cut into equal tiles.
    """
    num_images, _, height, width = images.shape
    if height != width:
        raise ValueError(f"S2 features need square images, got {width}x{height}; set image_aspect_ratio to pad")
    outputs: list[torch.Tensor] = []
    for scale in scales:
        tiles_per_side = math.ceil(scale / scales[0])
        if scale % tiles_per_side:
            raise ValueError(f"S2 scale {scale} cannot be cut into {tiles_per_side}x{tiles_per_side} equal tiles")
        resized = F.interpolate(images.float(), size=(scale, scale), mode="bicubic").to(images.dtype)
        tiles = _split(resized, tiles_per_side)
        maps = _to_map(encode(tiles))  # [k*k*N, D, side, side]
        merged = _merge(maps, tiles_per_side, num_images)
        outputs.append(merged)
    side = outputs[0].shape[-1]
    pooled = [F.interpolate(m.float(), size=(side, side), mode="area").to(m.dtype) for m in outputs]
    return torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)


def _split(images: torch.Tensor, tiles_per_side: int) -> torch.Tensor:
    """`[N, C, k*t, k*t]` -> `[k*k*N, C, t, t]`, batch order: tile row, tile column, image."""
    n, c, side, _ = images.shape
    t = side // tiles_per_side
    tiles = images.view(n, c, tiles_per_side, t, tiles_per_side, t).permute(2, 4, 0, 1, 3, 5)
    return tiles.reshape(-1, c, t, t)


def _to_map(tokens: torch.Tensor) -> torch.Tensor:
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)


def _merge(maps: torch.Tensor, tiles_per_side: int, num_images: int) -> torch.Tensor:
    """The inverse of `_split` on feature maps."""
    _, c, side, _ = maps.shape
    grid = maps.view(tiles_per_side, tiles_per_side, num_images, c, side, side).permute(2, 3, 0, 4, 1, 5)
    return grid.reshape(num_images, c, tiles_per_side * side, tiles_per_side * side)
