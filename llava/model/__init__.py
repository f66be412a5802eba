"""The models: `LlavaLlamaForCausalLM`, `LlavaMistralForCausalLM` and their configurations."""

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptConfig, LlavaMptForCausalLM

__all__ = [
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
]
