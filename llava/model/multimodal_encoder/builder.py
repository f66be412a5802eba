"""Build the vision tower named by a configuration."""

import os
from typing import Any

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, CLIPVisionTowerS2


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> CLIPVisionTower:
    """The tower of `cfg.mm_vision_tower` (else `cfg.vision_tower`); `cfg.s2` chooses the multi-scale one.

    Raises:
        ValueError: the name is neither an existing folder nor one of the known families.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(vision_tower_cfg, "vision_tower", None)
    known = name is not None and (os.path.exists(name) or name.startswith(("openai", "laion")) or "ShareGPT4V" in name)
    if not known:
        raise ValueError(
            f"Unknown vision tower: {name} (expected an existing folder, or a Hub name that starts with openai or "
            "laion, or contains ShareGPT4V)"
        )
    tower_class = CLIPVisionTowerS2 if getattr(vision_tower_cfg, "s2", False) else CLIPVisionTower
    return tower_class(name, args=vision_tower_cfg, **kwargs)
