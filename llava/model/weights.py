"""Read and write the torch files of a checkpoint as data, never as code."""

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open

from llava.files import write_atomically
from llava.model.checkpoint_kind import LORA_EXTRAS, STAGE1_WEIGHTS, find_file

PROJECTOR = "mm_projector."  # in the keys of the connector's entries


def load_weights_only(path: str) -> dict[str, torch.Tensor]:
    """A flat dictionary of tensors from a torch file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything else than tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No weight file at {path}")
    try:
        # Mapped, so that what is not used is not read; files of torch before 1.6 are no zip archives and cannot be.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a torch file of plain tensors, and nothing else is read from it: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} does not hold a flat dictionary of tensors")
    return state


def read_projector(model_path: str, model_base: str | None) -> dict[str, torch.Tensor]:
    """The connector's entries in the files of a checkpoint, without prefix; empty if there are none.

    Args:
        model_path: folder or Hub name.
        model_base: None for a full checkpoint; else a stage-1 or LoRA checkpoint is meant, which may leave the
            connector to its base.
    """
    if model_base is None:
        return adapter_state(projector_entries(model_path), "mm_projector")
    state = adapter_state(projector_entries(model_path, [STAGE1_WEIGHTS, LORA_EXTRAS]), "mm_projector")
    return state or read_projector(model_base, None)


def projector_entries(model_path: str, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """The connector's entries in the files of a checkpoint, under their full keys; empty if there are none.

    Only the files that hold them are opened, and nothing else in them is read (except in old torch files).

    Args:
        model_path: folder or Hub name.
        names: files to read if they exist; by default the weights of a full checkpoint.
    """
    state: dict[str, torch.Tensor] = {}
    for name in _files_with_projector(model_path) if names is None else names:
        path = find_file(model_path, name)
        if path is None:
            continue
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                state |= {key: file.get_tensor(key) for key in file.keys() if PROJECTOR in key}  # noqa: SIM118
        else:
            state |= {key: value for key, value in load_weights_only(path).items() if PROJECTOR in key}
    return state


def _files_with_projector(model_path: str) -> list[str]:
    for weights in ("model.safetensors", "pytorch_model.bin"):
        index = find_file(model_path, f"{weights}.index.json")
        if index is not None:
            with open(index, encoding="utf-8") as file:
                places = json.load(file)["weight_map"]
            return sorted({name for key, name in places.items() if PROJECTOR in key})
        if find_file(model_path, weights) is not None:
            return [weights]
    return []


def adapter_state(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Entries whose key contains `name`, with everything up to and including `name.` removed."""
    return {key.split(f"{name}.", 1)[1]: value for key, value in state.items() if f"{name}." in key}


def save_torch_atomically(path: str, state: Mapping[str, Any]) -> None:
    """Write a torch file atomically."""
    write_atomically(path, lambda temporary: torch.save(dict(state), temporary))
