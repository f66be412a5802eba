"""Reading the torch files of a checkpoint as data, never as code."""

import os
import pickle
from typing import Any

import torch


def load_weights_only(path: str) -> dict[str, torch.Tensor]:
    """A flat dictionary of tensors from a torch file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything else than tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No weight file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a torch file of plain tensors, and nothing else is read from it: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} does not hold a flat dictionary of tensors")
    return state


def adapter_state(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Entries whose key contains `name`, with everything up to and including `name.` removed."""
    return {key.split(f"{name}.", 1)[1]: value for key, value in state.items() if f"{name}." in key}
