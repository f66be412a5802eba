"""LLaVA's MPT names, importable so that users' imports keep working. LLaVA's own MPT classes cannot run either:
their forward pass raises TypeError."""

from typing import Any, NoReturn

from transformers import MptConfig, MptForCausalLM, MptModel

_REMEDY = "MPT is not supported: use a Llama or Mistral base (LlavaLlamaForCausalLM, LlavaMistralForCausalLM)"


class LlavaMptConfig(MptConfig):
    """Parses the configuration of an old `llava_mpt` checkpoint."""

    model_type = "llava_mpt"


class _RefusesUse:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__}: {_REMEDY}")

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{cls.__name__}: {_REMEDY}")


class LlavaMptModel(_RefusesUse, MptModel):
    """Raises NotImplementedError on use."""


class LlavaMptForCausalLM(_RefusesUse, MptForCausalLM):
    """Raises NotImplementedError on use."""
