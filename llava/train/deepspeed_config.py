"""Which training flags a DeepSpeed file overrules."""

import json
import logging
from typing import Any

logger = logging.getLogger(__name__)

RATES = ("mm_projector_lr", "B_matrix_lr", "vision_tower_lr")
SCHEDULERS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
DEFAULT_CLIPPING = 1.0  # what accelerate sets where the file says nothing


def warn_of_overruled_flags(args: Any) -> None:
    """Name the flags of the training arguments that have no effect, because the DeepSpeed file decides, once."""
    if not args.deepspeed or args.process_index != 0:
        return
    overruled = overruled_flags(read_deepspeed_config(args.deepspeed), args)
    if overruled:
        logger.warning(
            "The DeepSpeed file decides, and these flags have no effect: %s. To have them, use a file without the "
            'sections "optimizer" and "scheduler" and with "gradient_clipping": "auto", such as '
            "scripts/zero2_clip.json and scripts/zero3_clip.json.",
            ", ".join(f"--{name} {_plain(getattr(args, name))}" for name in overruled),
        )


def read_deepspeed_config(deepspeed: str | dict[str, Any]) -> dict[str, Any]:
    """The value of --deepspeed, which is a path or, in a program, the content itself."""
    if isinstance(deepspeed, dict):
        return deepspeed
    with open(deepspeed, encoding="utf-8") as file:
        return json.load(file)


def overruled_flags(config: dict[str, Any], args: Any) -> list[str]:
    """Names of the flags that `config` overrules, of those that were set to something else."""
    found = []
    if "gradient_clipping" not in config and args.max_grad_norm != DEFAULT_CLIPPING:
        found.append("max_grad_norm")
    if "optimizer" in config:
        found += [name for name in RATES if getattr(args, name) is not None]
    own = SCHEDULERS.get(config.get("scheduler", {}).get("type"))
    if "scheduler" in config and args.lr_scheduler_type != own:
        found.append("lr_scheduler_type")
    return found


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # of an enumeration
