"""--torch_compile_vision: the vision tower and the connector by torch.compile."""

import logging
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

logger = logging.getLogger(__name__)


def compile_vision(model: Any) -> None:
    """Compile the blocks of the tower, which share one compilation, and the connector, for any number of images.

    The modules are compiled in place, so that names in checkpoints stay as they are. Compilation happens at the first
    step and needs a C++ compiler.

    Raises:
        ValueError: the model has no vision tower, or ZeRO-3 is in use.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    tower = model.get_vision_tower() if hasattr(model, "get_vision_tower") else None
    if tower is None:
        raise ValueError("--torch_compile_vision compiles the vision tower and the connector, and there are none")
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "--torch_compile_vision cannot be used with ZeRO-3. It gathers each weight by a hook when a module runs, "
            "and a compiled block has one graph for all of its modules: the hooks would break it into pieces, and the "
            "graph would see weights of size 0. Use --deepspeed scripts/zero2_clip.json, or leave the flag out"
        )
    for block in tower.vision_tower.vision_model.encoder.layers:
        block.compile(dynamic=True)
    model.connector.compile(dynamic=True)
    logger.info("Vision tower and connector are compiled at the first step; that takes a minute.")
