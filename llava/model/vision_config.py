"""The vision keys of config.json: written in one place, with checks that they are consistent."""

import logging
from typing import Any

from llava.model.multimodal_projector.registry import DEFAULT_PROJECTOR, Connector
from llava.model.multimodal_projector.settings import check_connector, keep_settings, write_settings

logger = logging.getLogger(__name__)

KEPT_KEYS = {  # config.json key: flag
    "mm_vision_tower": "vision_tower",
    "mm_vision_select_layer": "mm_vision_select_layer",
    "mm_vision_select_feature": "mm_vision_select_feature",
    "mm_patch_merge_type": "mm_patch_merge_type",
}


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
    write_settings(config, model_args, tower)


def _keep_checkpoint_settings(config: Any, model_args: Any) -> None:
    keep_settings(config, model_args)
    for key, flag in KEPT_KEYS.items():
        asked, real = getattr(model_args, flag, None), getattr(config, key, None)
        if asked is not None and real is not None and asked != real:
            logger.warning("The checkpoint's %s %r is kept; --%s %r has no effect.", key, real, flag, asked)
    if not getattr(config, "mm_patch_merge_type", None):
        config.mm_patch_merge_type = "flat"


def check_vision_config(config: Any, tower: Any, connector: Connector) -> None:
    """`check_connector` with the heads and patches of `tower`."""
    check_connector(config, tower.config.num_attention_heads, tower.num_patches, connector)
