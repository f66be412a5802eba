"""The supported families of language models."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llava.model import (
    LlavaConfig,
    LlavaLlamaForCausalLM,
    LlavaLlamaVLoRAForCausalLM,
    LlavaMistralConfig,
    LlavaMistralForCausalLM,
    LlavaVLoRAConfig,
)
from llava.model.checkpoint_kind import checkpoint_kind
from llava.model.multimodal_projector.published_keys import is_published
from llava.model.weights import read_projector
from llava.program import RequestError

CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlavaLlamaForCausalLM, LlavaConfig),
    "mistral": (LlavaMistralForCausalLM, LlavaMistralConfig),
    "vlora": (LlavaLlamaVLoRAForCausalLM, LlavaVLoRAConfig),  # on Llama
}


def classes_of(family: str, path: str) -> tuple[Any, Any]:
    """Model and configuration class of a family.

    Raises:
        NotImplementedError: models of this family cannot take images here.
    """
    if family not in CLASSES:
        raise NotImplementedError(
            f"{path}: models of type {family!r} are not supported with images; use a Llama or Mistral base"
        )
    return CLASSES[family]


def read_config(config_class: Any, path: str) -> PretrainedConfig:
    """config.json as `config_class`, whatever its model type: LLaVA on a base, or LLaVA before 1.2 (`llava`)."""
    stored, _ = PretrainedConfig.get_config_dict(path)
    stored.pop("model_type", None)
    if "torch_dtype" in stored:
        stored.setdefault("dtype", stored.pop("torch_dtype"))
    return config_class.from_dict(stored)


def open_language_model(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A full checkpoint as its own class, without loading its vision tower; for the conversion tools.

    Configurations that say `llava` (LLaVA before 1.2) are opened with our class: transformers has an unrelated model of
    that type.

    Raises:
        RequestError: a published-style checkpoint, which needs settings from its user.
    """
    kind = checkpoint_kind(path, None, path)
    if kind.is_llava and is_published(read_projector(path, None)):
        raise RequestError(
            f"{path} is a published-style checkpoint, whose config.json does not tell its connector: open it with "
            "load_pretrained_model(path, None, name, mm_num_visual_tokens=...), save_pretrained it, and convert that"
        )
    if not kind.is_llava:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model_class, config_class = classes_of(kind.family, path)
    return model_class.from_pretrained(path, config=read_config(config_class, path), dtype=dtype)
