"""Functions of the task local_vqa.yaml; lmms-eval loads this file by its path."""

import ast
from typing import Any

from PIL import Image


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Return the images of a question; an empty list for a text-only one."""
    return [Image.open(doc["image"]).convert("RGB")] if doc["image"] else []


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1 for exactly the expected reply, else 0."""
    return {"exact": float(results[0].strip() == doc["answer"])}


def process_choices(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Return 1 if the expected answer has the smallest loss, else 0; lmms-eval 0.7.3 passes pairs as text."""
    losses = [(ast.literal_eval(result) if isinstance(result, str) else result)[0] for result in results]
    return {"acc": float(doc["choices"][losses.index(min(losses))] == doc["answer"])}
