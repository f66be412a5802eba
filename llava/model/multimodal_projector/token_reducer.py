"""What the connectors share that pick or merge tokens without weights of their own."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .mlp import build_projection
from .registry import Connector, setting
from .vision_features import VisionFeatures


@dataclass
class TokenSettings:
    """The settings of every connector with a token budget and an MLP."""

    mm_num_visual_tokens: int = setting(145, "Visual tokens per image; illegal numbers are refused.", minimum=1)
    mm_projector_mlp: str = setting("mlp2x_gelu", "Projection to the language model: mlp<k>x_gelu.")


@dataclass
class AnchorSettings:
    """The setting of every connector that reads the class token's attention."""

    mm_anchor_layer: int | None = setting(
        None, "Hidden state whose block supplies the class attention; by default the select layer.", at_load=True
    )


class TokenReducer(Connector):
    """`y = MLP(reduce(F))`, F `[B, 1+P, D]` -> `[B, T, d]`.

    The weights are LLaVA-1.5's MLP and nothing else, so these connectors also work on an MLP checkpoint, untrained.
    """

    is_elastic: ClassVar[bool] = True

    def __init__(self, settings: TokenSettings, vision_width: int, llm_width: int) -> None:
        super().__init__()
        self.num_visual_tokens = settings.mm_num_visual_tokens
        self.mlp = build_projection(settings.mm_projector_mlp, vision_width, llm_width)

    def load_published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """A plain projector of LLaVA is this connector's MLP."""
        if state.keys() == {"weight", "bias"}:
            return {f"mlp.0.{key}": value for key, value in state.items()}
        if all(key.split(".")[0].isdigit() for key in state):
            return {f"mlp.{key}": value for key, value in state.items()}
        return state

    def reduce(self, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        """-> `[B, T, D]`.

        Raises:
            ValueError: an illegal number of tokens; names the legal ones.
        """
        raise NotImplementedError

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> torch.Tensor:
        """-> visual tokens `[B, T, d]`."""
        budget = self.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
        return self.mlp(self.reduce(features, budget))
