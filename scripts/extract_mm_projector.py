"""Copy the connector out of a full checkpoint into one torch file.

Reads `pytorch_model.bin` or `model.safetensors`, sharded or not.
"""

import argparse
import json
import os

import torch
from safetensors import safe_open

from llava.model.weights import load_weights_only, save_torch_atomically

KEY = "mm_projector"


def extract(model_path: str) -> dict[str, torch.Tensor]:
    """Every entry whose key contains `mm_projector`.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: the weights hold no connector.
    """
    state: dict[str, torch.Tensor] = {}
    for name in weight_files(model_path):
        path = os.path.join(model_path, name)
        if name.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                state |= {key: file.get_tensor(key) for key in file.keys() if KEY in key}  # noqa: SIM118
        else:
            state |= {key: value for key, value in load_weights_only(path).items() if KEY in key}
    if not state:
        raise ValueError(f"No entry of {model_path} has {KEY} in its name: it is not a LLaVA checkpoint")
    return state


def weight_files(model_path: str) -> list[str]:
    """Names of the files that hold connector entries."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = os.path.join(model_path, f"{single}.index.json")
        if os.path.isfile(index):
            with open(index, encoding="utf-8") as file:
                return sorted({name for key, name in json.load(file)["weight_map"].items() if KEY in key})
        if os.path.isfile(os.path.join(model_path, single)):
            return [single]
    raise FileNotFoundError(f"{model_path} has neither model.safetensors nor pytorch_model.bin, whole or sharded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=str, required=True, help="folder of the full checkpoint")
    parser.add_argument("--output", type=str, required=True, help="file to write, for example mm_projector.bin")
    args = parser.parse_args()
    save_torch_atomically(args.output, extract(args.model_path))
