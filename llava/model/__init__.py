"""The models, one for each language model family, and their configurations.

They are imported when one of them is first used, and then registered with transformers' Auto classes. So parts of this
package that need torch only, such as the connectors, can be imported without transformers.
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
    """Import the models and return one of the classes above."""
    if name not in _MODULES:
        raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
    return getattr(import_module(f"llava.model.language_model.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
