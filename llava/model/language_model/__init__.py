"""One file per language model family. Importing any of them registers all with transformers' Auto classes."""

from llava.model.language_model import llava_llama, llava_mistral, llava_mpt, llava_vlora

__all__ = ["llava_llama", "llava_mistral", "llava_mpt", "llava_vlora"]
