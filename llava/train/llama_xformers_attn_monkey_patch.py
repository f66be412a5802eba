"""A name of old training code. Attention is chosen by `attn_implementation` now; nothing is patched."""

import warnings


def replace_llama_attn_with_xformers_attn() -> None:
    """Does nothing but say what replaced it."""
    warnings.warn(
        "replace_llama_attn_with_xformers_attn() has no effect: load the model with attn_implementation='sdpa' instead",
        DeprecationWarning,
        stacklevel=2,
    )
