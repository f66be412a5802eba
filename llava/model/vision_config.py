"""The vision keys of config.json: writing them once, and refusing settings that do not fit together."""

import logging
from dataclasses import fields
from typing import Any

from torch import nn

from llava.model.multimodal_projector.builder import is_grid_projector
from llava.model.multimodal_projector.registry import CONNECTORS, Connector

logger = logging.getLogger(__name__)

DEFAULT_PROJECTOR = "linear"


def write_vision_config(config: Any, model_args: Any, tower: Any, has_projector: bool) -> None:
    """Write the keys of contract package.md 11.4 marked "init", and those of the connector.

    With `has_projector` the configuration already describes the model's weights and stays as it is.

    Raises:
        ValueError: another connector is asked for than the model has.
    """
    config.use_mm_proj = True
    if has_projector:
        _keep_checkpoint_settings(config, model_args)
        return
    config.mm_vision_tower = model_args.vision_tower
    config.mm_projector_type = getattr(model_args, "mm_projector_type", None) or DEFAULT_PROJECTOR
    config.mm_hidden_size = tower.hidden_size
    config.mm_vision_select_layer = model_args.mm_vision_select_layer
    config.mm_vision_select_feature = model_args.mm_vision_select_feature
    config.mm_patch_merge_type = model_args.mm_patch_merge_type
    if getattr(model_args, "s2", False):
        config.s2, config.s2_scales = True, model_args.s2_scales
    own = CONNECTORS[config.mm_projector_type].config_class if config.mm_projector_type in CONNECTORS else None
    names = {f.name: f.default for f in fields(own)} if own else {}
    for name, default in names.items():
        given = getattr(model_args, name, None)
        setattr(config, name, default if given is None else given)
    if own:
        CONNECTORS[config.mm_projector_type].connector_class.derive_settings(config, tower)
    for name in sorted(connector_setting_names() - names.keys()):
        if getattr(model_args, name, None) is not None:
            logger.warning("--%s has no effect on the connector %s.", name, config.mm_projector_type)


def connector_setting_names() -> set[str]:
    """Names of the settings of all connectors."""
    return {setting.name for connector in CONNECTORS.values() for setting in fields(connector.config_class)}


def _keep_checkpoint_settings(config: Any, model_args: Any) -> None:
    asked, real = (
        getattr(model_args, "mm_projector_type", None),
        getattr(config, "mm_projector_type", DEFAULT_PROJECTOR),
    )
    if asked not in (None, DEFAULT_PROJECTOR, real):
        raise ValueError(
            f"The checkpoint has the connector {real!r}, but --mm_projector_type {asked!r} was asked for. Leave the "
            "flag out to go on with the checkpoint's, or start from a language model without a connector"
        )
    pairs = {
        "mm_vision_tower": "vision_tower",
        "mm_vision_select_layer": "mm_vision_select_layer",
        "mm_vision_select_feature": "mm_vision_select_feature",
        "mm_patch_merge_type": "mm_patch_merge_type",
        **{name: name for name in connector_setting_names()},
    }
    for key, flag in pairs.items():
        asked, real = getattr(model_args, flag, None), getattr(config, key, None)
        if asked is not None and real is not None and asked != real:
            logger.warning("The checkpoint's %s %r is kept; --%s %r has no effect.", key, real, flag, asked)
    if not getattr(config, "mm_patch_merge_type", None):
        config.mm_patch_merge_type = "flat"


def check_vision_config(config: Any, tower: Any, projector: nn.Module) -> None:
    """Refuse, when the model is built, what could only fail at the first picture; write the true token count.

    Raises:
        ValueError: the connector does not fit the tower, or spatial merging is asked of one without a patch grid.
    """
    merge_type = getattr(config, "mm_patch_merge_type", None) or "flat"
    if merge_type != "flat" and not is_grid_projector(projector):
        raise ValueError(
            f"mm_patch_merge_type {merge_type} needs one token per patch, but the connector "
            f"{config.mm_projector_type!r} gives {projector.num_visual_tokens} tokens that are not a grid; use flat"
        )
    if isinstance(projector, Connector):
        if getattr(config, "s2", False):
            raise ValueError(
                f"The connector {config.mm_projector_type!r} needs the class token, which the S2 tower has not"
            )
        projector.check_tower(tower.config.num_attention_heads, tower.num_patches)
        if hasattr(config, "mm_num_visual_tokens"):
            config.mm_num_visual_tokens = projector.num_visual_tokens
