"""The figure of `llava.tools.visual_anchors`: feature, norm and attention maps of a vision tower."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from PIL import Image, ImageDraw, ImageFont

from llava.image_processing import process_images
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.model.multimodal_projector.visual_anchors import select_visual_anchors

PANEL, MARGIN, HEADER = 240, 12, 28  # pixels
RING = (255, 45, 45)


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer, each `[h, w, 3]` uint8 on the patch grid.

    Attributes:
        layer: index of the hidden state; k is the output of block k-1.
    """

    layer: int
    pca: torch.Tensor
    norm: torch.Tensor
    attention: torch.Tensor


def pca_map(patches: torch.Tensor) -> torch.Tensor:
    """`[P, D]` -> `[h, w, 3]` uint8: three principal components of the centred features, each stretched to 0..255."""
    centred = (patches - patches.mean(dim=0)).float()
    components = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    components = components * components.sum(dim=1, keepdim=True).sign()  # a sign that does not depend on the solver
    return _to_grid(_stretch(centred @ components.T))


def heat_map(values: torch.Tensor) -> torch.Tensor:
    """`[P]` -> `[h, w, 3]` uint8, dark blue for the smallest to yellow for the largest."""
    level = (_stretch(values.float().unsqueeze(1)) / 255).squeeze(1)
    stops = torch.tensor([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]]).float()
    place = level * (len(stops) - 1)
    below = place.floor().long().clamp(max=len(stops) - 2)
    share = (place - below).unsqueeze(1)
    return _to_grid(stops[below] * (1 - share) + stops[below + 1] * share)


def _stretch(values: torch.Tensor) -> torch.Tensor:
    """`[P, C]`, every column to 0..255."""
    low, high = values.amin(dim=0), values.amax(dim=0)
    return (values - low) / (high - low).clamp(min=1e-12) * 255


def _to_grid(values: torch.Tensor) -> torch.Tensor:
    side = math.isqrt(len(values))
    return values.round().to(torch.uint8).view(side, side, -1)


def layer_maps(features: VisionFeatures, layer: int) -> LayerMaps:
    """The three maps of one image, features of a batch of one."""
    patches = features.hidden[0, 1:]
    return LayerMaps(
        layer, pca_map(patches), heat_map(patches.norm(dim=1)), heat_map(features.cls_attention[0].mean(dim=0))
    )


@torch.no_grad()
def features_of_layers(tower: CLIPVisionTower, pixels: torch.Tensor, layers: list[int]) -> list[VisionFeatures]:
    """Features of one image `[3, H, W]` at every layer of `layers` (hidden states, from 1)."""
    selected = tower.select_layer
    try:
        features = []
        for layer in layers:
            tower.select_layer = layer
            features.append(tower.encode(pixels.unsqueeze(0), need_cls_attention=True))
        return features
    finally:
        tower.select_layer = selected


def draw_panel(grid: torch.Tensor | Image.Image, anchors: list[int], side: int, panel_size: int = PANEL) -> Image.Image:
    """A map or image in panel size, with a ring around the patches `anchors` of a `side` x `side` grid."""
    image = grid if isinstance(grid, Image.Image) else Image.fromarray(grid.numpy())
    panel = image.resize(
        (panel_size, panel_size), Image.Resampling.NEAREST if image.width == side else Image.Resampling.BICUBIC
    )
    draw, cell = ImageDraw.Draw(panel), panel_size / side
    for patch in anchors:
        x, y = (patch % side) * cell, (patch // side) * cell
        draw.ellipse((x, y, x + cell - 1, y + cell - 1), outline=(255, 255, 255), width=3 if cell > 16 else 2)
        draw.ellipse((x + 1, y + 1, x + cell - 2, y + cell - 2), outline=RING, width=2 if cell > 16 else 1)
    return panel


def compose(rows: list[list[tuple[str, Image.Image]]], panel_size: int = PANEL) -> Image.Image:
    """Rows of titled panels on a white sheet; long rows are wrapped at the width of four panels."""
    lines = [row[i : i + 4] for row in rows for i in range(0, len(row), 4)]
    width = max(len(line) for line in lines) * (panel_size + MARGIN) + MARGIN
    height = len(lines) * (panel_size + HEADER + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for j, line in enumerate(lines):
        for i, (title, panel) in enumerate(line):
            x, y = MARGIN + i * (panel_size + MARGIN), MARGIN + j * (panel_size + HEADER + MARGIN)
            draw.text((x, y + 4), title, fill="black", font=font)
            sheet.paste(panel, (x, y + HEADER))
    return sheet


def shown_image(pixels: torch.Tensor, processor: object) -> Image.Image:
    """The image as the tower sees it, `[3, H, W]` normalised."""
    mean, std = (torch.tensor(getattr(processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    rgb = ((pixels.float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rgb.permute(1, 2, 0).numpy())


@torch.no_grad()
def find_anchors(
    tower: CLIPVisionTower, image: Image.Image, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The padded image's pixels `[3, H, W]`, the class token's attention `[1, H, P]`, and the patches it chooses.

    Raises:
        ValueError: the tower does not allow this budget.
    """
    pixels = process_images([image], tower.image_processor, SimpleNamespace(image_aspect_ratio="pad"))[0]
    pixels = pixels.to(tower.device, tower.dtype)
    attention = tower.encode(pixels.unsqueeze(0), need_cls_attention=True).cls_attention
    return pixels, attention, (select_visual_anchors(attention, tokens - 1)[0, 1:] - 1).tolist()


def draw_anchor_pair(tower: CLIPVisionTower, image: Image.Image, tokens: int) -> tuple[Image.Image, str]:
    """The image with its anchors circled beside the attention that chose them, and a caption.

    Raises:
        ValueError: the tower does not allow this budget.
    """
    pixels, attention, anchors = find_anchors(tower, image, tokens)
    side = tower.num_patches_per_side
    seen = shown_image(pixels.cpu(), tower.image_processor)
    mean = heat_map(attention[0].mean(dim=0).cpu())
    titled = [
        ("visual anchors", draw_panel(seen, anchors, side, 480)),
        ("class attention", draw_panel(mean, [], side, 480)),
    ]
    return compose([titled], 480), f"{len(anchors)} visual anchors of {tower.num_patches} patches"


def draw_anchors(
    tower: CLIPVisionTower, image: Image.Image, tokens: int, layers: list[int] | None = None
) -> Image.Image:
    """The whole sheet for one image.

    Args:
        tower: loaded; its select layer decides the anchors.
        tokens: AcFormer's budget, class token counted.
        layers: hidden states to show, from 1; all by default.

    Raises:
        ValueError: the tower does not allow this budget or has no such layer.
    """
    pixels, attention, anchors = find_anchors(tower, image, tokens)
    side = tower.num_patches_per_side
    shown = layers or list(range(1, tower.config.num_hidden_layers + 1))
    seen = shown_image(pixels, tower.image_processor)
    rows = []
    for maps in map(layer_maps, features_of_layers(tower, pixels, shown), shown):
        rows.append(
            [
                (f"{len(anchors)} anchors", draw_panel(seen, anchors, side)),
                (f"layer {maps.layer}: principal components", draw_panel(maps.pca, anchors, side)),
                (f"layer {maps.layer}: norm", draw_panel(maps.norm, anchors, side)),
                (f"layer {maps.layer}: class attention", draw_panel(maps.attention, anchors, side)),
            ]
        )
    heads = [
        (f"select layer, head {i}", draw_panel(heat_map(row), anchors, side)) for i, row in enumerate(attention[0])
    ]
    return compose([*rows, heads])
