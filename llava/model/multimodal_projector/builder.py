"""The factory of connectors."""

from typing import Any

from torch import nn

from llava.model.multimodal_projector import (  # noqa: F401  each registers itself
    acformer,
    acformer_vlora,
    c_abstractor,
    evit,
    perceiver,
    pixel_shuffle,
    pooling,
    pooling_pr,
    random_pr,
    top_p,
    visionzip,
    vlora,
)
from llava.model.multimodal_projector.mlp import IdentityMap, SimpleResBlock, build_mlp, mlp_depth
from llava.model.multimodal_projector.registry import CONNECTORS, Connector, read_settings

__all__ = ["IdentityMap", "SimpleResBlock", "build_vision_projector", "is_grid_projector", "known_projector_types"]


def known_projector_types() -> list[str]:
    """Every legal value of `mm_projector_type`."""
    return ["linear", "mlp<k>x_gelu", "identity", *sorted(CONNECTORS)]


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """The module named `mm_projector` of a LLaVA model.

    Args:
        config: a model configuration with `mm_hidden_size` (width of the vision tower), `hidden_size` (width of the
            language model) and `mm_projector_type`, `linear` if absent; connectors read their own keys from it.

    Raises:
        ValueError: the type is unknown; the message lists the known ones.
    """
    projector_type = getattr(config, "mm_projector_type", None) or "linear"
    if projector_type == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    if projector_type == "identity":
        return IdentityMap()
    depth = mlp_depth(projector_type)
    if depth is not None:
        return build_mlp(depth, config.mm_hidden_size, config.hidden_size)
    if projector_type in CONNECTORS:
        entry = CONNECTORS[projector_type]
        settings = read_settings(entry.config_class, config)
        return entry.connector_class.from_config(settings, config)
    raise ValueError(f"Unknown projector type: {projector_type} (known: {', '.join(known_projector_types())})")


def is_grid_projector(projector: nn.Module) -> bool:
    """Whether the projector keeps one token per patch, as unpadding and spatial merging require."""
    return projector.is_grid if isinstance(projector, Connector) else True
