"""LLaVA-1.5 with better vision-language connectors. Importing the package is light; the models load on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.model import LlavaLlamaForCausalLM

__all__ = ["LlavaLlamaForCausalLM"]


def __getattr__(name: str) -> object:
    """`from llava import LlavaLlamaForCausalLM` works without making `import llava` pull in torch."""
    if name == "LlavaLlamaForCausalLM":
        from llava.model import LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
