"""The factory of connectors."""

from typing import Any

from . import (  # noqa: F401  each registers itself
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
from .mlp import IdentityMap, SimpleResBlock
from .registry import Connector, find_connector, known_projector_types, read_settings

__all__ = ["IdentityMap", "SimpleResBlock", "build_vision_projector", "find_connector", "known_projector_types"]


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> Connector:
    """The module named `mm_projector` of a LLaVA model.

    Args:
        config: a model configuration with `mm_hidden_size` (width of the vision tower), `hidden_size` (width of the
            language model) and `mm_projector_type`, `linear` if absent; connectors read their own keys from it.

    Raises:
        ValueError: the type is unknown, or a setting is illegal; the message lists what is legal.
    """
    entry = find_connector(getattr(config, "mm_projector_type", None))
    return entry.connector_class.from_config(read_settings(entry.config_class, config), config)
