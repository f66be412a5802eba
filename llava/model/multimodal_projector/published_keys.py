"""Key names of published AcFormer-style checkpoints (contract acformer.md 4) and ours."""

import re
from typing import Any

RECOGNISED_BY = "0.layers.0.0.to_q.weight"

_RENAMES = [
    (re.compile(r"^0\.layers\.(\d+)\.0\.(.+)$"), r"resampler.layers.\1.\2"),
    (re.compile(r"^0\.layers\.(\d+)\.1\.(\d+)\.(.+)$"), r"resampler.layers.\1.feed_forward.\2.\3"),
    (re.compile(r"^0\.norm\.(.+)$"), r"resampler.norm.\1"),
]
_MLP_KEY = re.compile(r"^(\d+)\.(weight|bias)$")


def map_resampler_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Rename a published projector's entries to this package's; a state of ours comes back unchanged.

    The published module is `Sequential(resampler, Linear, GELU, Linear)`: its MLP stands at 1 and 3, ours at 0 and 2 of
    `mlp`. `0.latents` is dropped: AcFormer draws its queries from the picture and never used them.
    """
    if RECOGNISED_BY not in state:
        return state
    return {_rename(key): value for key, value in state.items() if key != "0.latents"}


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        if pattern.match(key):
            return pattern.sub(replacement, key)
    mlp = _MLP_KEY.match(key)
    if mlp:
        return f"mlp.{int(mlp.group(1)) - 1}.{mlp.group(2)}"
    raise ValueError(f"Unknown entry {key!r} in a published AcFormer projector")
