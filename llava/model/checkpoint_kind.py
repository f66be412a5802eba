"""The kind of a checkpoint: config.json decides; LLaVA's rules on names are the fallback."""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import cached_file

ADAPTER_CONFIG = "adapter_config.json"
STAGE1_WEIGHTS = "mm_projector.bin"
LORA_EXTRAS = "non_lora_trainables.bin"


@dataclass(frozen=True)
class CheckpointKind:
    """How a checkpoint is to be opened.

    Attributes:
        is_llava: it has (or goes with) a vision tower and a connector.
        family: `llama`, `mistral` or `mpt`; of another model, its type.
        is_lora: it holds a PEFT adapter.
    """

    is_llava: bool
    family: str
    is_lora: bool


def has_tuned_tower(config: Any) -> bool:
    """Whether the checkpoint holds a vision tower of its own (`--tune_vision_tower`; LLaVA-1.6's key is another)."""
    return bool(getattr(config, "tune_vision_tower", False))


def find_file(model_path: str, name: str) -> str | None:
    """Local path of a file of the checkpoint (folder or Hub repository), or None if it has none."""
    return cached_file(
        model_path,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def checkpoint_kind(model_path: str, model_base: str | None, model_name: str) -> CheckpointKind:
    """Classify a checkpoint.

    Raises:
        OSError: there is nothing readable at `model_path`.
    """
    name = model_name.lower()
    is_lora = find_file(model_path, ADAPTER_CONFIG) is not None
    config = read_config_dict(model_path, required=not is_lora)
    if not config:
        return CheckpointKind("llava" in name, _family_of_name(name), is_lora)
    model_type = config.get("model_type", "")
    is_llava = model_type.startswith("llava") or "mm_vision_tower" in config
    family = _family_of_type(model_type, name)
    if is_lora and model_base is not None:
        # Old LoRA folders say llava_llama whatever their base is.
        family = _family_of_type(read_config_dict(model_base, required=True).get("model_type", ""), name)
    return CheckpointKind(is_llava, family, is_lora)


def read_config_dict(path: str, required: bool) -> dict[str, Any]:
    """The raw config.json; empty if there is none and it is not required.

    Raises:
        OSError: it is required and cannot be read.
    """
    if not required and find_file(path, "config.json") is None:
        return {}
    try:
        return PretrainedConfig.get_config_dict(path)[0]
    except OSError as error:
        raise OSError(
            f"{path} is neither a folder with a readable config.json nor a Hub repository that can be reached; "
            "check the path (and, for the Hub, HF_HUB_OFFLINE and the network)"
        ) from error


def _family_of_type(model_type: str, name: str) -> str:
    """The family by config.json's model type, or by the model's name where the type is ambiguous."""
    if model_type in ("", "llava"):
        return _family_of_name(name)
    return model_type.removeprefix("llava_")


def _family_of_name(name: str) -> str:
    return next((family for family in ("mpt", "mistral") if family in name), "llama")
