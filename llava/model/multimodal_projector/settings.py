"""The settings of connectors in a model's configuration: written in one place, with checks that they are consistent."""

import json
import logging
import os
from dataclasses import Field, field, fields
from types import SimpleNamespace
from typing import Any

from .registry import CONNECTORS, DEFAULT_PROJECTOR, Connector, find_connector

logger = logging.getLogger(__name__)


def connector_setting_names() -> set[str]:
    """Names of the settings of all connectors."""
    return {setting.name for connector in CONNECTORS.values() for setting in fields(connector.config_class)}


def setting_flags() -> list[tuple[str, Any, Field]]:
    """One optional command-line flag per setting, default None, as `dataclasses.make_dataclass` takes them."""
    settings: dict[str, list[Any]] = {}
    for connector in CONNECTORS.values():
        for setting in fields(connector.config_class):
            settings.setdefault(setting.name, []).append(setting)
    flags = []
    for name, variants in settings.items():
        defaults = ", ".join(dict.fromkeys(str(variant.default) for variant in variants))
        help_text = f"{variants[0].metadata['help']} (default {defaults})"
        flags.append((name, variants[0].type | None, field(default=None, metadata={"help": help_text})))
    return flags


def own_settings(config: Any) -> dict[str, Any]:
    """The settings of the configuration's connector, with defaults for what it does not state."""
    own = fields(find_connector(getattr(config, "mm_projector_type", None)).config_class)
    stated = {f.name: getattr(config, f.name, None) for f in own}
    return {f.name: f.default if stated[f.name] is None else stated[f.name] for f in own}


def write_settings(config: Any, flags: Any, tower: Any) -> None:
    """Write the settings of a new connector, `config.mm_projector_type`, into `config`.

    Args:
        config: with the widths and the tower's keys already written.
        flags: settings as attributes; absent or None means the default.
        tower: the vision tower; settings that follow from it are derived.
    """
    entry = find_connector(config.mm_projector_type)
    names = {f.name: f.default for f in fields(entry.config_class)}
    for name, default in names.items():
        given = getattr(flags, name, None)
        setattr(config, name, default if given is None else given)
    entry.connector_class.derive_settings(config, tower)
    for name in sorted(connector_setting_names() - names.keys()):
        if getattr(flags, name, None) is not None:
            logger.warning("--%s has no effect on the connector %s.", name, config.mm_projector_type)


def keep_settings(config: Any, flags: Any) -> None:
    """Keep the connector and the settings that `config` describes, and say which flags have no effect.

    Raises:
        ValueError: the flags ask for another connector.
    """
    real = getattr(config, "mm_projector_type", None) or DEFAULT_PROJECTOR
    asked = getattr(flags, "mm_projector_type", None)
    if asked not in (None, DEFAULT_PROJECTOR, real):
        raise ValueError(
            f"The checkpoint has the connector {real!r}, but --mm_projector_type {asked!r} was asked for. Leave the "
            "flag out to keep the checkpoint's, or start from a language model without a connector"
        )
    own = own_settings(config)
    for name in sorted(connector_setting_names()):
        asked = getattr(flags, name, None)
        if asked is not None and name not in own:
            logger.warning("--%s has no effect on the connector %s.", name, real)
        elif asked is not None and asked != own[name]:
            logger.warning("The checkpoint's %s %r is kept; --%s %r has no effect.", name, own[name], name, asked)


def check_connector(config: Any, num_heads: int, num_patches: int, connector: Connector) -> None:
    """Refuse, when the model is built, what would fail at the first image; write the actual token count.

    Args:
        config: of the model.
        num_heads, num_patches: of the vision tower.
        connector: may be on the meta device; no weight is read.

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
    connector.check_tower(num_heads, num_patches)
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


def check_stage1_settings(config: Any, adapter_path: str) -> None:
    """Compare the settings that shapes do not determine with the config.json beside a stage-1 file.

    Raises:
        ValueError: a setting differs that the weights were trained with.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(adapter_path)), "config.json")
    entry = find_connector(config.mm_projector_type)
    if not fields(entry.config_class) or not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        trained = SimpleNamespace(**json.load(file))
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
