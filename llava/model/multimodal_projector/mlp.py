"""LLaVA's own connectors: one visual token per patch, through a linear layer, an MLP, or unchanged."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from .registry import DEFAULT_PROJECTOR, MLP_NAME, MLP_PATTERN, Connector, register_connector
from .vision_features import VisionFeatures


@dataclass
class NoSettings:
    """These connectors are described by their name alone."""


class PatchConnector(Connector):
    """One visual token per patch, in patch order. `num_visual_tokens` is known once `check_tower` has run.

    Attributes:
        keeps_class_token: whether the class token is a visual token too (`mm_vision_select_feature` `cls_patch`).
    """

    is_grid: ClassVar[bool] = True
    needs_class_token: ClassVar[bool] = False
    keeps_class_token: bool = False

    @classmethod
    def from_config(cls, settings: NoSettings, config: Any) -> "PatchConnector":
        name = getattr(config, "mm_projector_type", None) or DEFAULT_PROJECTOR
        connector = cls.from_widths(name, config.mm_hidden_size, config.hidden_size)
        feature = getattr(config, "mm_vision_select_feature", "patch")
        if feature not in ("patch", "cls_patch"):
            raise ValueError(f"Unexpected select feature: {feature} (mm_vision_select_feature is patch or cls_patch)")
        connector.keeps_class_token = feature == "cls_patch"
        return connector

    @classmethod
    def from_widths(cls, name: str, vision_width: int, llm_width: int) -> "PatchConnector":
        """Build the connector that `mm_projector_type` calls `name`."""
        raise NotImplementedError

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        return num_patches + self.keeps_class_token

    def check_tower(self, num_heads: int, num_patches: int) -> None:
        self.num_visual_tokens = self.count_tokens(0, num_heads, num_patches)

    def select(self, features: VisionFeatures | torch.Tensor) -> torch.Tensor:
        """The tokens `[B, T, D]` to project. A tensor passes unchanged, for code that calls `mm_projector` itself."""
        if not isinstance(features, VisionFeatures):
            return features
        return features.hidden if self.keeps_class_token else features.patches


@register_connector("linear", NoSettings)
class LinearProjector(nn.Linear, PatchConnector):
    """LLaVA-1.0's connector, `[B, P, D]` -> `[B, P, d]`. Entries `weight` and `bias`."""

    @classmethod
    def from_widths(cls, name: str, vision_width: int, llm_width: int) -> "LinearProjector":
        return cls(vision_width, llm_width)

    def forward(self, features: VisionFeatures | torch.Tensor, num_visual_tokens: int | None = None) -> torch.Tensor:
        """-> visual tokens `[B, P, d]`."""
        return super().forward(self.select(features))

    def _get_name(self) -> str:
        return "Linear"  # printed as in LLaVA


@register_connector(MLP_PATTERN, NoSettings)
class MLPProjector(nn.Sequential, PatchConnector):
    """LLaVA-1.5's connector, k linear layers with GELU in between. Entries `0.*`, `2.*`, `4.*`, ..."""

    @classmethod
    def from_widths(cls, name: str, vision_width: int, llm_width: int) -> "MLPProjector":
        return cls(*mlp_layers(name, vision_width, llm_width))

    def forward(self, features: VisionFeatures | torch.Tensor, num_visual_tokens: int | None = None) -> torch.Tensor:
        """-> visual tokens `[B, P, d]`."""
        return super().forward(self.select(features))

    def _get_name(self) -> str:
        return "Sequential"  # printed as in LLaVA


@register_connector("identity", NoSettings)
class IdentityMap(PatchConnector):
    """Passes the features on unchanged."""

    @classmethod
    def from_widths(cls, name: str, vision_width: int, llm_width: int) -> "IdentityMap":
        return cls()

    def forward(self, x: VisionFeatures | torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.select(x)

    @property
    def config(self) -> dict[str, str]:
        return {"mm_projector_type": "identity"}


class SimpleResBlock(nn.Module):
    """LayerNorm, then a residual two-layer MLP of constant width. Public in LLaVA, used by no connector."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pre_norm(x)
        return x + self.proj(x)


def mlp_layers(mlp_type: str, in_width: int, out_width: int) -> list[nn.Module]:
    """The layers of `mlp<k>x_gelu`: k linear layers with an exact GELU between each two.

    Raises:
        ValueError: `mlp_type` has another form.
    """
    match = MLP_NAME.match(mlp_type)
    if match is None:
        raise ValueError(f"an MLP must be named mlp<k>x_gelu, for example mlp2x_gelu, not {mlp_type!r}")
    layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(1, int(match.group(1))):
        layers += [nn.GELU(), nn.Linear(out_width, out_width)]
    return layers


def as_mlp(projector_type: str) -> str | None:
    """The `mm_projector_mlp` that has the same layers as one of LLaVA's own connectors; None for any other name."""
    if projector_type == "linear":
        return "mlp1x_gelu"
    return projector_type if MLP_NAME.match(projector_type) else None


def build_projection(mlp_type: str, in_width: int, out_width: int) -> nn.Sequential:
    """The MLP at the end of a connector, from its setting `mm_projector_mlp`.

    Raises:
        ValueError: `mlp_type` is not `mlp<k>x_gelu`.
    """
    try:
        return nn.Sequential(*mlp_layers(mlp_type, in_width, out_width))
    except ValueError as error:
        raise ValueError(f"mm_projector_mlp: {error}") from None
