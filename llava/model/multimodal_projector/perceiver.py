"""PR, the perceiver resampler: learned queries."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .published_keys import map_resampler_keys
from .registry import BareParameters, register_connector
from .resampler import ResamplerConnector, ResamplerSettings
from .vision_features import VisionFeatures


@dataclass
class PerceiverConfig(ResamplerSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""


@register_connector("perceiver", PerceiverConfig)
@register_connector("pr", PerceiverConfig)
class Perceiver(ResamplerConnector, BareParameters):
    """`y = MLP(Resampler(z, F))` with z `[T, D]` learned, one for all images, F `[B, 1+P, D]` -> `[B, T, d]`."""

    def __init__(self, settings: PerceiverConfig, vision_width: int, llm_width: int) -> None:
        super().__init__(settings, vision_width, llm_width)
        self.latents = nn.Parameter(torch.randn(self.num_visual_tokens, self.width))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.latents)

    def load_published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return map_resampler_keys(state, keep_latents=True)

    def queries(self, media: torch.Tensor, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        return self.latents.expand(len(media), -1, -1)
