"""Run the code base's own vision tower, looking at what it encodes, and a connector after it."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import nn

from llava.model.multimodal_projector.class_attention import class_token_attention
from llava.model.multimodal_projector.perceptual_weights import PerceptualWeights
from llava.model.multimodal_projector.registry import Connector
from llava.model.multimodal_projector.settings import check_connector
from llava.model.multimodal_projector.vision_features import VisionFeatures

_registering = Lock()

# Hidden states of the CLIP calls in this thread, while `read_tower` listens.
_heard: ContextVar[list[tuple[torch.Tensor, ...]] | None] = ContextVar("clip_hidden_states", default=None)


def hook_once(hooks: Mapping[int, Any], hook: Callable[..., Any], register: Callable[..., Any], **options: Any) -> None:
    """Register a hook that is not among a module's `hooks`.

    Several threads may come here first. Replicas of nn.DataParallel share the hooks of their original.
    """
    with _registering:
        if hook not in hooks.values():
            register(hook, **options)


def connector_of(model: Any) -> Connector | None:
    """The connector of a causal language model; None where the code base's own projector is in its place."""
    connector = getattr(model.get_model(), "mm_projector", None)
    if hasattr(connector, "modules_to_save"):  # PEFT's wrapper
        connector = connector.modules_to_save[connector.active_adapter]
    return connector if isinstance(connector, Connector) else None


def run_connector(
    model: Any, connector: Connector, images: torch.Tensor
) -> torch.Tensor | PerceptualWeights | tuple[torch.Tensor, PerceptualWeights]:
    """The connector's output for images `[N, 3, H, W]`.

    Raises:
        ValueError: the connector does not fit the tower, or is quantised and makes weights.
    """
    tower, config = model.get_vision_tower(), model.config
    features = read_tower(tower, images, connector, getattr(config, "mm_anchor_layer", None))
    check_connector(config, tower.config.num_attention_heads, features.patches.shape[1], connector)
    dtypes = {p.dtype for p in connector.parameters()}
    if connector.space != "input" and not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(
            f"The weights of {type(connector).__name__} are quantised, and it cannot work with them; add mm_projector "
            "to llm_int8_skip_modules where the model is loaded"
        )
    dtype = next((p.dtype for p in connector.parameters() if p.dtype.is_floating_point), images.dtype)
    return connector(features.to(dtype))


def read_tower(
    tower: nn.Module, images: torch.Tensor, connector: Connector, anchor_layer: int | None = None
) -> VisionFeatures:
    """Run the tower and return what a connector reads, in the dtype of `images`.

    The tower's own forward runs, with its casts and its rule about gradients. A hook on the CLIP model inside notes its
    hidden states.

    Args:
        tower: with a CLIP model of transformers as `vision_tower`, and `select_layer`.
        images: `[N, 3, H, W]`.
        connector: tells what it needs.
        anchor_layer: `mm_anchor_layer`; None means the select layer.

    Raises:
        TypeError: the tower has no CLIP model, or does not run it once for all images.
        ValueError: a layer is out of range.
    """
    clip = getattr(tower, "vision_tower", None)
    encoder = getattr(getattr(clip, "vision_model", clip), "encoder", None)
    if encoder is None or not hasattr(tower, "select_layer"):
        raise TypeError(
            f"The vision tower {type(tower).__name__} is not a CLIP of transformers, whose class token the connectors "
            "need; use a CLIP tower, or a projector of this code base"
        )
    hook_once(clip._forward_hooks, _note, clip.register_forward_hook)
    token = _heard.set([])
    try:
        tower(images)
        heard = _heard.get()
    finally:
        _heard.reset(token)
    if len(heard) != 1 or len(heard[0][0]) != len(images):
        raise TypeError(
            f"The vision tower {type(tower).__name__} ran its CLIP model {len(heard)} times for one batch; connectors "
            "need one view per image, with its class token (no S2, no tiles)"
        )
    hidden_states = heard[0]
    selected = hidden_states[_index(tower.select_layer, len(hidden_states), "mm_vision_select_layer")]
    attention, keys = None, None
    if connector.needs_cls_attention or connector.needs_patch_keys:
        flag = "mm_vision_select_layer" if anchor_layer is None else "mm_anchor_layer"
        layer = tower.select_layer if anchor_layer is None else anchor_layer
        index = _index(layer, len(hidden_states), flag)
        if index == 0:
            raise ValueError(f"{flag} selects the embeddings, which have no class attention; choose a later layer")
        with torch.no_grad():
            attention, keys = class_token_attention(encoder.layers[index - 1], hidden_states[index - 1])
    features = VisionFeatures(
        selected,
        attention if connector.needs_cls_attention else None,
        keys if connector.needs_patch_keys else None,
    )
    return features.to(images.dtype)


def _note(clip: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    heard, states = _heard.get(), getattr(output, "hidden_states", None)
    if heard is not None and states is not None:
        heard.append(states)


def _index(layer: int, count: int, flag: str) -> int:
    if not -count <= layer < count:
        raise ValueError(f"{flag} {layer} is outside the tower's {count} hidden states; use -{count} to {count - 1}")
    return layer % count
