"""Merge the crops of one image into one sequence of visual tokens."""

from dataclasses import dataclass
from typing import Any

import torch

from llava.images import get_anyres_image_grid_shape, parse_pinpoints


def unpad_image(tensor: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
    """Cut off the part of a feature map that shows only padding.

    Args:
        tensor: `[C, H, W]` features of a padded image.
        original_size: (width, height) of the image before padding, pixels.

    Returns:
        `[C, h, w]`. With an odd difference one padding row or column stays.
    """
    rows, columns = _without_padding(*tensor.shape[1:], original_size)
    return tensor[:, rows, columns]


def _without_padding(height: int, width: int, original_size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a feature map that show the image."""
    original_width, original_height = original_size
    if original_width / original_height > width / height:
        pad = (height - int(original_height * (width / original_width))) // 2
        return slice(pad, height - pad), slice(0, width)
    pad = (width - int(original_width * (height / original_height))) // 2
    return slice(0, height), slice(pad, width - pad)


def merge_type_of(config: Any) -> str:
    """`config.mm_patch_merge_type`, `flat` if absent.

    Raises:
        ValueError: it is neither flat nor spatial.
    """
    merge_type = getattr(config, "mm_patch_merge_type", None) or "flat"
    if merge_type != "flat" and not merge_type.startswith("spatial"):
        raise ValueError(f"Unexpected mm_patch_merge_type: {merge_type} (expected flat, spatial or spatial_unpad)")
    return merge_type


@dataclass(frozen=True)
class CropLayout:
    """How many visual tokens `merge_crops` makes of an image.

    Attributes:
        merge_type: `config.mm_patch_merge_type`.
        pinpoints: (width, height) of the canvases that an image may be cut from, pixels.
        tile: side of a crop, pixels.
        patches_per_side: of one crop.
    """

    merge_type: str
    pinpoints: list[tuple[int, int]]
    tile: int
    patches_per_side: int

    @classmethod
    def of_config(cls, config: Any, tower: Any) -> "CropLayout":
        pinpoints = parse_pinpoints(config.image_grid_pinpoints)
        return cls(merge_type_of(config), pinpoints, tower.config.image_size, tower.num_patches_per_side)

    def count_tokens(self, per_crop: int, image_size: tuple[int, int]) -> int:
        """Visual tokens of an image of (width, height) pixels whose crops have `per_crop` tokens each."""
        grid_w, grid_h = get_anyres_image_grid_shape(image_size, self.pinpoints, self.tile)
        if self.merge_type == "flat":
            return (1 + grid_w * grid_h) * per_crop
        height, width = grid_h * self.patches_per_side, grid_w * self.patches_per_side
        if "unpad" not in self.merge_type:
            return per_crop + height * width
        rows, columns = _without_padding(height, width, image_size)
        return per_crop + (rows.stop - rows.start) * (columns.stop - columns.start + 1)  # a newline ends every row


def merge_crops(
    crops: torch.Tensor,
    *,
    config: Any,
    tower: Any,
    image_size: tuple[int, int] | None,
    image_newline: torch.Tensor | None,
) -> torch.Tensor:
    """One image's crops `[M, T, d]`, base view first -> `[n, d]` by `config.mm_patch_merge_type`.

    Raises:
        ValueError: unknown merge type, base view of unexpected size, or no image size given where one is needed.
        NotImplementedError: spatial merging of several crops without `image_aspect_ratio` anyres.
    """
    merge_type = merge_type_of(config)
    if merge_type == "flat":
        return crops.flatten(0, 1)
    unpad = "unpad" in merge_type
    if len(crops) == 1:
        return torch.cat([crops[0], image_newline[None].to(crops)]) if unpad else crops[0]

    if (getattr(config, "image_aspect_ratio", None) or "square") != "anyres":
        raise NotImplementedError(
            f"mm_patch_merge_type {merge_type} needs image_aspect_ratio anyres for an image of several crops, "
            f"not {getattr(config, 'image_aspect_ratio', None)!r}"
        )
    if image_size is None:
        raise ValueError(f"mm_patch_merge_type {merge_type} needs image_sizes, (width, height) per image")
    side = tower.num_patches_per_side
    base, tiles = crops[0], crops[1:]
    if base.shape[0] != side * side:
        raise ValueError(f"The base view has {base.shape[0]} tokens; spatial merging needs {side}x{side} patches")
    grid_w, grid_h = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, tower.config.image_size)
    # [grid_h, grid_w, side, side, d] -> [d, grid_h * side, grid_w * side]
    feature_map = tiles.view(grid_h, grid_w, side, side, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    if unpad:
        feature_map = unpad_image(feature_map, image_size)
        newline = image_newline[:, None, None].expand(-1, feature_map.shape[1], 1).to(feature_map)
        feature_map = torch.cat([feature_map, newline], dim=-1)
    return torch.cat([base, feature_map.flatten(1).T])
