"""The vision keys of config.json: written in one place, with checks that they are consistent."""

import logging
import os
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from transformers import PretrainedConfig

from llava.model.multimodal_projector.registry import CONNECTORS, DEFAULT_PROJECTOR, Connector, find_connector

logger = logging.getLogger(__name__)


def write_vision_config(config: Any, model_args: Any, tower: Any, has_projector: bool) -> None:
    """Write LLaVA's vision keys and the settings of the connector into `config`.

    With `has_projector` the configuration already describes the model's weights and is kept.

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
    entry = find_connector(config.mm_projector_type)
    names = {f.name: f.default for f in fields(entry.config_class)}
    for name, default in names.items():
        given = getattr(model_args, name, None)
        setattr(config, name, default if given is None else given)
    entry.connector_class.derive_settings(config, tower)
    for name in sorted(connector_setting_names() - names.keys()):
        if getattr(model_args, name, None) is not None:
            logger.warning("--%s has no effect on the connector %s.", name, config.mm_projector_type)


def connector_setting_names() -> set[str]:
    """Names of the settings of all connectors."""
    return {setting.name for connector in CONNECTORS.values() for setting in fields(connector.config_class)}


def own_settings(config: Any) -> dict[str, Any]:
    """The settings of the configuration's connector, with defaults for what it does not state."""
    own = fields(find_connector(getattr(config, "mm_projector_type", None)).config_class)
    stated = {f.name: getattr(config, f.name, None) for f in own}
    return {f.name: f.default if stated[f.name] is None else stated[f.name] for f in own}


def check_stage1_settings(config: Any, adapter_path: str) -> None:
    """Compare the settings that shapes do not determine with the config.json beside a stage-1 file.

    Raises:
        ValueError: a setting differs that the weights were trained with.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(adapter_path)), "config.json")
    entry = find_connector(config.mm_projector_type)
    if not fields(entry.config_class) or not os.path.isfile(path):
        return
    trained = SimpleNamespace(**PretrainedConfig.get_config_dict(os.path.dirname(path))[0])
    if getattr(trained, "mm_projector_type", None) != config.mm_projector_type:
        logger.warning(
            "%s was trained as %r and is used as %r.",
            *(adapter_path, getattr(trained, "mm_projector_type", None), config.mm_projector_type),
        )
        return
    before, now = own_settings(trained), own_settings(config)
    for f in fields(entry.config_class):
        if before[f.name] in (now[f.name], None):  # None: derived, and older files do not state it
            continue
        if not entry.is_free(f):
            raise ValueError(
                f"{adapter_path} was trained with {f.name} {before[f.name]}, but --{f.name} {now[f.name]} is "
                "asked for; give the same value, or train stage 1 again"
            )
        logger.warning(
            "%s was trained with %s %s, training continues with %s.",
            *(adapter_path, f.name, before[f.name], now[f.name]),
        )


def _keep_checkpoint_settings(config: Any, model_args: Any) -> None:
    asked, real = (
        getattr(model_args, "mm_projector_type", None),
        getattr(config, "mm_projector_type", DEFAULT_PROJECTOR),
    )
    if asked not in (None, DEFAULT_PROJECTOR, real):
        raise ValueError(
            f"The checkpoint has the connector {real!r}, but --mm_projector_type {asked!r} was asked for. Leave the "
            "flag out to keep the checkpoint's, or start from a language model without a connector"
        )
    pairs = {
        "mm_vision_tower": "vision_tower",
        "mm_vision_select_layer": "mm_vision_select_layer",
        "mm_vision_select_feature": "mm_vision_select_feature",
        "mm_patch_merge_type": "mm_patch_merge_type",
    }
    for key, flag in pairs.items():
        asked, real = getattr(model_args, flag, None), getattr(config, key, None)
        if asked is not None and real is not None and asked != real:
            logger.warning("The checkpoint's %s %r is kept; --%s %r has no effect.", key, real, flag, asked)
    connector_type = getattr(config, "mm_projector_type", None) or DEFAULT_PROJECTOR
    own = own_settings(config)
    for name in sorted(connector_setting_names()):
        asked = getattr(model_args, name, None)
        if asked is not None and name not in own:
            logger.warning("--%s has no effect on the connector %s.", name, connector_type)
        elif asked is not None and asked != own[name]:
            logger.warning("The checkpoint's %s %r is kept; --%s %r has no effect.", name, own[name], name, asked)
    if not getattr(config, "mm_patch_merge_type", None):
        config.mm_patch_merge_type = "flat"


def check_vision_config(config: Any, tower: Any, connector: Connector) -> None:
    """Refuse, when the model is built, what would fail at the first image; write the actual token count.

    Raises:
        ValueError: the connector does not fit the tower, or spatial merging is requested without a patch grid.
    """
    merge_type = getattr(config, "mm_patch_merge_type", None) or "flat"
    if merge_type != "flat" and not connector.is_grid:
        raise ValueError(
            f"mm_patch_merge_type {merge_type} needs one token per patch, but the connector "
            f"{config.mm_projector_type!r} gives {connector.num_visual_tokens} tokens that are not a grid; use flat"
        )
    check_aspect_ratio(config, connector)
    if connector.needs_class_token and getattr(config, "s2", False):
        raise ValueError(
            f"The connector {config.mm_projector_type!r} needs the class token, which the S2 tower does not have"
        )
    connector.check_tower(tower.config.num_attention_heads, tower.num_patches)
    if own_settings(config) and hasattr(config, "mm_num_visual_tokens"):
        config.mm_num_visual_tokens = connector.num_visual_tokens


def check_aspect_ratio(config: Any, connector: Connector) -> None:
    """Check that the connector can take the views that `image_aspect_ratio` makes.

    Raises:
        ValueError: anyres makes several crops of an image, and the connector takes one view.
    """
    if connector.space != "input" and getattr(config, "image_aspect_ratio", None) == "anyres":
        raise ValueError(
            "image_aspect_ratio anyres makes several crops of an image, but the connector "
            f"{config.mm_projector_type!r} makes weights of one view; use pad or square"
        )
