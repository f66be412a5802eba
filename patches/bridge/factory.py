"""Build a connector in place of the code base's own projector, from flags and configuration."""

from dataclasses import fields, make_dataclass
from typing import Any

import torch
from torch import nn

from llava.model.multimodal_projector import settings
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.mlp import PatchConnector
from llava.model.multimodal_projector.registry import CONNECTORS, Connector
from llava.model.multimodal_projector.vision_features import VisionFeatures

from .host import OWN_TYPES


def is_offered(projector_type: str | None) -> bool:
    """Whether a value of `mm_projector_type` means one of these connectors, and not one of the code base's own."""
    entry = None if projector_type in OWN_TYPES else CONNECTORS.get(projector_type or "")
    return entry is not None and not issubclass(entry.connector_class, PatchConnector)


def build_connector(config: Any) -> Connector | None:
    """The connector that `config.mm_projector_type` names; None for the code base's own types.

    Args:
        config: a model configuration, see `build_vision_projector`.

    Raises:
        ValueError: a setting is illegal; the message lists what is legal.
    """
    if not is_offered(getattr(config, "mm_projector_type", None)):
        return None
    connector = build_vision_projector(config)
    connector.projector_type = config.mm_projector_type  # code bases overwrite the configuration's by their flag
    connector._register_load_state_dict_pre_hook(_accept_published_names, with_module=True)
    connector.register_forward_pre_hook(_refuse_tensors)
    return connector


def _accept_published_names(
    connector: Connector,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Rename the entries of a published checkpoint in `load_state_dict`.

    `from_pretrained` with `low_cpu_mem_usage` places tensors by name and does not come here.
    """
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    mapped = connector.load_published_state(own)
    if mapped is not own:
        for key in own:
            del state[prefix + key]
        state.update({prefix + key: value for key, value in mapped.items()})
    misfit = connector.explain_misfit(mapped)
    if misfit is not None:
        errors.append(f"The connector's weights do not fit: {misfit}")


def _refuse_tensors(connector: nn.Module, args: tuple[Any, ...]) -> None:
    if args and not isinstance(args[0], VisionFeatures):
        raise TypeError(
            f"The connector {type(connector).__name__} was called with {type(args[0]).__name__}: this code calls "
            "mm_projector by itself, for a grid of patches. Call the model's encode_images instead, or use a projector "
            "of this code base"
        )


def write_settings(model: Any, model_args: Any) -> None:
    """Write the connector's settings into the configuration, before it is built.

    A model that already has one of these connectors keeps it and its settings.

    Args:
        model: the inner model, whose `config` has the vision keys and whose tower is loaded.
        model_args: the flags.

    Raises:
        ValueError: another connector is asked for than the checkpoint has, or a setting does not fit the tower or the
            stage-1 file.
    """
    config, connector = model.config, getattr(model, "mm_projector", None)
    if isinstance(connector, Connector):
        config.mm_projector_type = connector.projector_type
        settings.keep_settings(config, model_args)
    elif not is_offered(config.mm_projector_type):
        return
    elif connector is not None:
        raise ValueError(
            f"The checkpoint has a connector of another type, but --mm_projector_type {config.mm_projector_type!r} was "
            "asked for. Leave the flag out to keep the checkpoint's, or start from a language model without a connector"
        )
    else:
        tower = model.get_vision_tower()
        settings.write_settings(config, model_args, tower)
        with torch.device("meta"):
            trial = build_vision_projector(config)
        settings.check_connector(config, tower.config.num_attention_heads, tower.num_patches, trial)
    stage1 = getattr(model_args, "pretrain_mm_mlp_adapter", None)
    if stage1:
        settings.check_stage1_settings(config, stage1)


def with_connector_flags(arguments: type) -> type:
    """Add a flag for every setting of a connector to a dataclass of flags; flags it already has stay as they are."""
    known, is_frozen = {f.name for f in fields(arguments)}, arguments.__dataclass_params__.frozen
    added = [flag for flag in settings.setting_flags() if flag[0] not in known]
    extended = make_dataclass(arguments.__name__, added, bases=(arguments,), frozen=is_frozen)
    extended.__module__, extended.__doc__ = arguments.__module__, arguments.__doc__
    return extended
