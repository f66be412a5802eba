"""A name used by old training code. `attn_implementation` selects the attention; nothing is patched."""

import warnings


def replace_llama_attn_with_xformers_attn() -> None:
    """Warn and name the replacement; nothing is patched."""
    warnings.warn(
        "replace_llama_attn_with_xformers_attn() has no effect: load the model with attn_implementation='sdpa' instead",
        DeprecationWarning,
        stacklevel=2,
    )
