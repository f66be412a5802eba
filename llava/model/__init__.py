"""The models, one for each language model family, and their configurations; each is imported on first use.

Parts of this package that need torch only, such as the connectors, can then be imported without transformers.
"""

from importlib import import_module

_MODULES = {
    "LlavaConfig": "llava_llama",
    "LlavaLlamaForCausalLM": "llava_llama",
    "LlavaLlamaVLoRAForCausalLM": "llava_vlora",
    "LlavaMistralConfig": "llava_mistral",
    "LlavaMistralForCausalLM": "llava_mistral",
    "LlavaMptConfig": "llava_mpt",
    "LlavaMptForCausalLM": "llava_mpt",
    "LlavaVLoRAConfig": "llava_vlora",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> type:
    """Import the module of a class; all model types are then registered with transformers' Auto classes."""
    if name not in _MODULES:
        raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
    modules = {module: import_module(f"llava.model.language_model.{module}") for module in set(_MODULES.values())}
    return getattr(modules[_MODULES[name]], name)
