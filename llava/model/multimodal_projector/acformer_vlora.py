"""A few anchor tokens and perceptual weights of one image at once (arXiv 2405.17815 and 2405.20339)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .acformer import AcFormer, AcFormerConfig
from .perceptual_weights import PerceptualWeights
from .registry import Connector, register_connector
from .vision_features import VisionFeatures
from .vlora import VLoRA, VLoRAConfig


@dataclass
class AcFormerVLoRAConfig(VLoRAConfig, AcFormerConfig):
    """The settings of both connectors, under their own names."""


@register_connector("acformer_vlora", AcFormerVLoRAConfig)
class AcFormerVLoRA(Connector):
    """AcFormer's visual tokens `[B, T, d]` go into the sequence, VLoRA's weights into the decoder.

    The tokens can carry details that a low rank cannot, such as written words. They are ordinary: later positions
    attend to them, and nothing is masked.
    """

    space: ClassVar[str] = "both"
    needs_cls_attention: ClassVar[bool] = True
    is_elastic: ClassVar[bool] = True

    def __init__(self, tokens: AcFormer, weights: VLoRA) -> None:
        super().__init__()
        self.tokens, self.weights = tokens, weights
        self.num_visual_tokens = tokens.num_visual_tokens

    @classmethod
    def derive_settings(cls, config: Any, tower: Any) -> None:
        VLoRA.derive_settings(config, tower)

    @classmethod
    def from_config(cls, settings: AcFormerVLoRAConfig, config: Any) -> "AcFormerVLoRA":
        return cls(AcFormer.from_config(settings, config), VLoRA.from_config(settings, config))

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        return self.tokens.count_tokens(wanted, num_heads, num_patches)

    def check_tower(self, num_heads: int, num_patches: int) -> None:
        super().check_tower(num_heads, num_patches)
        self.weights.check_tower(num_heads, num_patches)

    def explain_misfit(self, state: dict[str, torch.Tensor]) -> str | None:
        own = {key.removeprefix("weights."): value for key, value in state.items() if key.startswith("weights.")}
        return self.weights.explain_misfit(own)

    def forward(
        self, features: VisionFeatures, num_visual_tokens: int | None = None
    ) -> tuple[torch.Tensor, PerceptualWeights]:
        budget = self.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
        return self.tokens(features, budget), self.weights(features)
