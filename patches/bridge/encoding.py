"""Images to visual tokens, in place of the code base's own `encode_images`."""

from typing import Any

import torch

from .image_weights import note_weights
from .vision import connector_of, run_connector


def encode_images(model: Any, images: torch.Tensor) -> torch.Tensor | None:
    """Visual tokens `[N, T, d]` of images or crops `[N, 3, H, W]`; None where the code base's own projector is used.

    Raises:
        TypeError: the connector makes weights only, and no visual tokens.
        ValueError: the connector does not fit the tower.
    """
    connector = connector_of(model)
    if connector is None:
        return None
    if connector.space == "parameter":
        raise TypeError(
            f"The connector {type(connector).__name__} turns images into weights, not into visual tokens; call the "
            "model's forward or generate with images"
        )
    encoded = run_connector(model, connector, images)
    if connector.space == "input":
        return encoded
    tokens, weights = encoded
    note_weights(model, weights)
    return tokens
