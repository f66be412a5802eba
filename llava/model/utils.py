"""Upgrading the configuration of very old checkpoints."""

import json
import os
import sys

from llava.files import write_text_atomically

MODEL_TYPE = "llava_llama"
ARCHITECTURE = "LlavaLlamaForCausalLM"


def auto_upgrade(config: str) -> None:
    """Rewrite a LLaVA folder whose config.json still says plain `llama`, after asking on stdin.

    Args:
        config: the checkpoint's folder. Nothing happens unless its path contains `llava`.

    Raises:
        SystemExit: the answer was not yes (exit code 1), also when stdin is closed.
        ValueError: the stored model type is neither LLaVA's nor llama.
    """
    path = os.path.join(config, "config.json")
    if "llava" not in config or not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        stored = json.load(file)
    if "llava" in stored.get("model_type", ""):
        return
    if stored.get("model_type") != "llama":
        raise ValueError(f"{path} has model_type {stored.get('model_type')!r}; only llama can be upgraded")
    print("You are using newer LLaVA code base, while the checkpoint is from older code base.")
    print("You must upgrade the checkpoint to the new code base (this is a one-time action).")
    if not _confirmed("Please confirm that you want to upgrade the checkpoint. [Y/N] "):
        print("Checkpoint upgrade aborted.")
        sys.exit(1)
    print("Upgrading checkpoint...")
    stored |= {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    write_text_atomically(path, json.dumps(stored, indent=2) + "\n")
    print("Checkpoint upgraded.")


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print("No answer: standard input is closed.")
        return False
