"""One small setting of every connector, for the tiny tower of the vectors: 56 px, patches of 14 -> 4x4, 4 heads."""

from types import SimpleNamespace
from typing import Any

import torch

from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.registry import Connector
from llava.model.multimodal_projector.vision_features import VisionFeatures

# Asked for -> what comes out on 16 patches and 4 heads.
TOKENS = {
    "acformer": (9, 9),
    "perceiver": (9, 9),
    "pr": (9, 9),
    "pooling": (5, 5),
    "pooling_pr": (5, 5),
    "random_pr": (9, 9),
    "c_abstractor": (9, 9),
    "top_p": (9, 9),
    "evit": (9, 10),
    "pixel_shuffle": (5, 4),
    "visionzip": (9, 9),
}
CONNECTOR_NAMES = list(TOKENS)
ELASTIC = ["acformer", "pooling", "pooling_pr", "random_pr", "c_abstractor", "top_p", "evit", "visionzip"]
SMALL = {
    "mm_resampler_depth": 2,
    "mm_resampler_heads": 2,
    "mm_resampler_dim_head": 8,
    "mm_abstractor_depth": 1,
}


def flags(name: str, tokens: int | None = None) -> list[str]:
    """Command-line flags of a training run."""
    settings = {"mm_num_visual_tokens": tokens or TOKENS[name][0], **SMALL}
    return ["--mm_projector_type", name, *(part for k, v in settings.items() for part in (f"--{k}", str(v)))]


def connector(name: str, tokens: int | None = None, **more: Any) -> Connector:
    """The connector in evaluation mode, checked against the tower (vision width 32, LLM width 48)."""
    torch.manual_seed(0)
    settings = {"mm_num_visual_tokens": tokens or TOKENS[name][0]} | SMALL | more
    module = build_vision_projector(
        SimpleNamespace(mm_projector_type=name, mm_hidden_size=32, hidden_size=48, **settings)
    )
    module.check_tower(num_heads=4, num_patches=16)
    return module.eval()


def features(batch: int = 2, heads: int = 4, patches: int = 16, width: int = 32) -> VisionFeatures:
    """Random features; the attention has no ties."""
    generator = torch.Generator().manual_seed(batch)
    attention = torch.randn(batch, heads, patches + 1, generator=generator).softmax(-1)[..., 1:]
    hidden = torch.randn(batch, 1 + patches, width, generator=generator)
    return VisionFeatures(hidden, attention, torch.randn(batch, patches, width, generator=generator))
