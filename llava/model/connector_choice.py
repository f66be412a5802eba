"""The connector that a checkpoint is opened with: its own, a published one recognised by its keys, or another one."""

import copy
import logging
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import torch

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.mlp import as_mlp
from llava.model.multimodal_projector.perceiver import Perceiver
from llava.model.multimodal_projector.published_keys import is_published, settings_of_published
from llava.model.multimodal_projector.registry import CONNECTORS, DEFAULT_PROJECTOR, find_connector
from llava.model.multimodal_projector.settings import connector_setting_names
from llava.model.vision_config import check_vision_config
from llava.model.weights import read_projector
from llava.program import RequestError

logger = logging.getLogger(__name__)

TYPE, TOKENS, HEADS = "mm_projector_type", "mm_num_visual_tokens", "mm_resampler_heads"


def pop_overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Take the connector's name and settings out of `options`; None means not given."""
    names = {TYPE, *connector_setting_names()} & options.keys()
    taken = {name: options.pop(name) for name in sorted(names)}
    return {name: value for name, value in taken.items() if value is not None}


def choose_connector(
    config: Any, model_path: str, model_base: str | None, overrides: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Write into `config` the connector to build for a checkpoint.

    Args:
        config: the checkpoint's, changed in place.
        overrides: `mm_projector_type` and settings that replace the checkpoint's.

    Returns:
        The connector's entries as named in the checkpoint's files, if they have other names than the connector's
        own and must be loaded by `load_connector_state`; else nothing.

    Raises:
        RequestError: the checkpoint's weights cannot serve as that connector without training, a setting is asked for
            that was fixed when they were trained, or the tower does not allow it; names what is possible.
    """
    try:
        state = _choose(config, model_path, model_base, overrides)
        if overrides or state:
            _check_before_loading(config)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return {f"mm_projector.{key}": value for key, value in state.items()}


def _check_before_loading(config: Any) -> None:
    with torch.device("meta"):
        tower = build_vision_tower(config, delay_load=True)
        check_vision_config(config, tower, build_vision_projector(config))


def _choose(config: Any, model_path: str, model_base: str | None, overrides: dict[str, Any]) -> dict[str, torch.Tensor]:
    own_type = getattr(config, TYPE, None) or DEFAULT_PROJECTOR
    keeps_own = overrides.get(TYPE, own_type) == own_type
    if keeps_own and as_mlp(own_type) is None:
        _apply_settings(config, own_type, overrides)
        return {}

    state = read_projector(model_path, model_base)
    published = settings_of_published(state, overrides.get(HEADS, 8))
    extra = sorted(overrides.keys() - {TYPE})
    if keeps_own and not published and not extra:
        return {}
    if published:
        _describe_published(config, published, model_path, overrides)
    elif as_mlp(own_type) is not None:
        config.mm_projector_mlp = as_mlp(own_type)
    with_settings = [name for name, entry in CONNECTORS.items() if fields(entry.config_class)]
    possible = [name for name in with_settings if _fits(config, name, state)]
    if keeps_own and not published:
        raise ValueError(
            f"{model_path} has the connector {own_type!r}, without {', '.join(extra)}. "
            f"Without training it can be opened with {TYPE} {' or '.join(possible)}"
        )

    new_type = config.mm_projector_type if keeps_own else overrides[TYPE]
    if new_type not in possible:
        raise ValueError(
            f"The connector in {model_path} ({getattr(config, TYPE)!r}) cannot serve as {new_type!r} without training. "
            f"Its weights fit: {', '.join(possible) or 'itself only'}"
        )
    config.mm_projector_type = new_type
    if _counts_latents(new_type, state):
        config.mm_num_visual_tokens = len(state["0.latents"])
    _apply_settings(config, new_type, overrides)
    return state


def choose_for_training(config: Any, model_path: str, flags: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`choose_connector` for a full checkpoint that training starts from.

    `flags` change only settings that no weight depends on; the checkpoint keeps the others.
    """
    own_type = getattr(config, TYPE, None) or DEFAULT_PROJECTOR
    if getattr(config, "mm_vision_tower", None) is None:
        return {}
    if as_mlp(own_type) is None:
        return choose_connector(config, model_path, None, _given(flags, own_type, find_connector(own_type).is_free))
    state = read_projector(model_path, None)
    if not is_published(state):
        return {}
    asked_type = flags.get(TYPE)
    if asked_type in (None, DEFAULT_PROJECTOR):  # the flag's default asks for nothing
        asked_type = settings_of_published(state, flags.get(HEADS) or 8)[TYPE]
    known = asked_type if asked_type in CONNECTORS else "acformer"
    return choose_connector(config, model_path, None, {TYPE: asked_type} | _given(flags, known, lambda f: True))


def _given(flags: dict[str, Any], connector_type: str, wanted: Callable[[Field], bool]) -> dict[str, Any]:
    """The settings of a connector that the flags state."""
    settings = fields(find_connector(connector_type).config_class)
    return {f.name: flags[f.name] for f in settings if flags.get(f.name) is not None and wanted(f)}


def _describe_published(config: Any, published: dict[str, Any], model_path: str, overrides: dict[str, Any]) -> None:
    """config.json describes a plain MLP. The shapes give most settings, the caller the rest."""
    for name, value in published.items():
        setattr(config, name, value)
    settings = {f.name for f in fields(find_connector(config.mm_projector_type).config_class)}
    unsaid = [name for name in (TOKENS, HEADS) if name in settings and name not in overrides]
    if unsaid:
        logger.warning(
            "%s is a published-style %s and does not record %s: the defaults are used unless you give them.",
            *(model_path, config.mm_projector_type, " and ".join(unsaid)),
        )


def _apply_settings(config: Any, connector_type: str, overrides: dict[str, Any]) -> None:
    """Write all settings of the connector, so that the saved configuration is complete."""
    entry = find_connector(connector_type)
    settings = {f.name: f for f in fields(entry.config_class)}
    for name in sorted(overrides.keys() - {TYPE}):
        if name not in settings:
            known = ", ".join(settings) or "no settings"
            raise ValueError(f"The connector {connector_type!r} has no setting {name}; it has {known}")
    for name, field in settings.items():
        stated = getattr(config, name, None)
        stated = field.default if stated is None else stated
        value = overrides.get(name, stated)
        if value != stated and not entry.is_free(field):
            raise ValueError(
                f"{name} is {stated} in this checkpoint and is built into the weights of {connector_type!r}; "
                f"it cannot be {value} without training"
            )
        setattr(config, name, value)


def _fits(config: Any, connector_type: str, state: dict[str, torch.Tensor]) -> bool:
    trial = copy.copy(config)
    trial.mm_projector_type = connector_type
    if _counts_latents(connector_type, state):
        trial.mm_num_visual_tokens = len(state["0.latents"])
    try:
        with torch.device("meta"):
            connector = build_vision_projector(trial)
        mapped = connector.load_published_state(state)
    except ValueError:  # settings that it needs, or entries that its published form has, are not there
        return False
    return {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in connector.state_dict().items()}


def _counts_latents(connector_type: str, state: dict[str, torch.Tensor]) -> bool:
    """Whether the published learned queries determine the number of visual tokens."""
    return "0.latents" in state and find_connector(connector_type).connector_class is Perceiver
