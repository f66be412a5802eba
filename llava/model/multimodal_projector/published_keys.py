"""Key names of published AcFormer-style checkpoints and ours."""

import re
from typing import Any

import torch

RESAMPLER_MARK = "0.layers.0.0.to_q.weight"
ABSTRACTOR_MARK = "0.net.0.b1.conv1.conv.weight"

_MEDIA = re.compile(r"^0\.layers\.(\d+)\.0\.(norm_media\.weight|norm_media\.bias|to_kv\.weight)$")
_MEDIA_NAMES = {"norm_media.weight": "norm_weight", "norm_media.bias": "norm_bias", "to_kv.weight": "to_kv"}
_RESAMPLER_RENAMES = [
    (re.compile(r"^0\.latents$"), r"latents"),
    (re.compile(r"^0\.layers\.(\d+)\.0\.(.+)$"), r"resampler.layers.\1.\2"),
    (re.compile(r"^0\.layers\.(\d+)\.1\.(\d+)\.(.+)$"), r"resampler.layers.\1.feed_forward.\2.\3"),
    (re.compile(r"^0\.norm\.(.+)$"), r"resampler.norm.\1"),
]
_ABSTRACTOR_STAGES = {"0": "before", "2": "after"}
_ABSTRACTOR_BLOCK = re.compile(r"^0\.net\.([02])\.b(\d+)\.(.+)$")
_ABSTRACTOR_PARTS = [
    (re.compile(r"^conv(\d)\.conv\."), r"conv\1."),
    (re.compile(r"^conv(\d)\.bn\."), r"norm\1."),
    (re.compile(r"^se\.fc1\."), r"squeeze."),
    (re.compile(r"^se\.fc2\."), r"excite."),
]
_MLP_KEY = re.compile(r"^(\d+)\.(weight|bias)$")


def map_resampler_keys(state: dict[str, torch.Tensor], keep_latents: bool = False) -> dict[str, torch.Tensor]:
    """Rename a published projector's entries to this package's; a state of ours comes back unchanged.

    The published module is `Sequential(resampler, Linear, GELU, Linear)`: its MLP has indices 1 and 3, ours 0 and 2
    in `mlp`. Its layers hold the keys and values of the image layer by layer, ours together (`MediaProjection`).

    Args:
        keep_latents: keep the learned queries. AcFormer draws its own and never used them.
    """
    if RESAMPLER_MARK not in state:
        return state
    mapped, media = {}, {}
    for key, value in state.items():
        match = _MEDIA.match(key)
        if match:
            media.setdefault(_MEDIA_NAMES[match.group(2)], {})[int(match.group(1))] = value
        elif key != "0.latents" or keep_latents:
            mapped[_rename(key, _RESAMPLER_RENAMES)] = value
    for name, layers in media.items():
        mapped[f"resampler.media.{name}"] = torch.stack([layers[i] for i in sorted(layers)])
    return mapped


def map_abstractor_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As `map_resampler_keys`, for a published C-Abstractor: blocks b1, b2, ... of the stages net.0 and net.2."""
    if ABSTRACTOR_MARK not in state:
        return state
    return {_rename_abstractor(key): value for key, value in state.items()}


def _rename_abstractor(key: str) -> str:
    match = _ABSTRACTOR_BLOCK.match(key)
    if match is None:
        return _rename(key, [])
    stage, block, part = match.groups()
    return f"{_ABSTRACTOR_STAGES[stage]}.{int(block) - 1}.{_rename(part, _ABSTRACTOR_PARTS)}"


def _rename(key: str, renames: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in renames:
        if pattern.match(key):
            return pattern.sub(replacement, key)
    mlp = _MLP_KEY.match(key)
    if mlp:
        return f"mlp.{int(mlp.group(1)) - 1}.{mlp.group(2)}"
    raise ValueError(f"Unknown entry {key!r} in a published AcFormer-style projector")


def is_published(state: dict[str, Any]) -> bool:
    """Whether a projector's entries have published AcFormer-style names."""
    return RESAMPLER_MARK in state or ABSTRACTOR_MARK in state


def settings_of_published(state: dict[str, Any], heads: int = 8) -> dict[str, Any]:
    """The configuration that a published projector needs, read from its shapes; empty for any other projector.

    Its config.json says `mlp2x_gelu` and nothing of the connector.

    Args:
        state: the projector's entries without prefix; anything with a `shape`.
        heads: of the resampler; the shapes do not tell them.

    Raises:
        ValueError: the resampler's inner width is not a multiple of `heads`.
    """
    if ABSTRACTOR_MARK in state:
        blocks = {int(m.group(2)) for m in map(_ABSTRACTOR_BLOCK.match, state) if m}
        return {"mm_projector_type": "c_abstractor", "mm_abstractor_depth": max(blocks), **_mlp_setting(state)}
    if RESAMPLER_MARK not in state:
        return {}
    inner, width = state[RESAMPLER_MARK].shape
    if heads < 1 or inner % heads:
        raise ValueError(f"The resampler's inner width {inner} is not a multiple of mm_resampler_heads {heads}")
    return {
        "mm_projector_type": "acformer",
        "mm_resampler_depth": 1 + max(int(m.group(1)) for m in map(_MEDIA.match, state) if m),
        "mm_resampler_heads": heads,
        "mm_resampler_dim_head": inner // heads,
        "mm_resampler_ff_mult": state["0.layers.0.1.1.weight"].shape[0] // width,
        **_mlp_setting(state),
    }


def _mlp_setting(state: dict[str, Any]) -> dict[str, str]:
    """`mm_projector_mlp`: the published module's linear layers have the indices 1, 3, 5, ..."""
    depth = sum(1 for key in state if _MLP_KEY.match(key) and key.endswith(".weight"))
    return {"mm_projector_mlp": f"mlp{depth}x_gelu"}
