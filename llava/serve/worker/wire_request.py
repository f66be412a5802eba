"""The fields of a request to `/worker_generate_stream`, read with care (contract: serve.md 2.1)."""

import math
from typing import Any

from llava.program import RequestError
from llava.serve.engine.generation import GenerationRequest
from llava.serve.engine.sampling import TOP_K, SamplingSettings
from llava.serve.worker.served_model import MAX_NEW_TOKENS, MAX_STOP_LENGTH, ServedModel


def number(params: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number or the text of one (old clients send both).

    Raises:
        RequestError: anything else, or outside of `low` to `high`.
    """
    given = params.get(name)
    if given is None:
        return default
    try:
        value = float(given) if isinstance(given, int | float | str) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not low <= value <= high:  # also what is not a number
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}")
    return value


def whole(params: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    """As `number`, without a fraction.

    Raises:
        RequestError: see there.
    """
    given = params.get(name)
    if given is None:
        return default
    try:
        value = int(given) if isinstance(given, int | float | str) and not isinstance(given, bool) else None
    except (ValueError, OverflowError):
        value = None
    if value is None or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}")
    return value


def generation_request(params: dict[str, Any], served: ServedModel) -> GenerationRequest:
    """What the engine is to do for one wire request. Decodes pictures: not for the event loop's thread.

    Raises:
        RequestError, ImageError: a field or a picture cannot be used; says which.
        ContextFullError: the prompt is far too long.
    """
    prompt = params["prompt"]
    images = params.get("images") or ()
    if not served.is_multimodal:
        images = ()  # ignored, as upstream does
    if not isinstance(images, list | tuple) or not all(isinstance(image, str) for image in images):
        raise RequestError("images must be a list of base64 texts")
    served.limits.check_count(len(images))
    served.check_pictures(prompt, len(images))
    pictures = tuple(served.engine.prepare(served.limits.decode_base64(image)) for image in images)
    stop = params.get("stop")
    if stop is not None and not (isinstance(stop, str) and len(stop) <= MAX_STOP_LENGTH):
        raise RequestError(f"stop must be a text of at most {MAX_STOP_LENGTH} characters, or null")
    return GenerationRequest(
        input_ids=served.tokenize(prompt),
        pictures=pictures,
        max_new_tokens=min(whole(params, "max_new_tokens", 256, -(2**31), 2**31), MAX_NEW_TOKENS),
        sampling=SamplingSettings(
            temperature=number(params, "temperature", 1.0, 0.0, 100.0),
            top_p=number(params, "top_p", 1.0, 0.0, 1.0),
            top_k=whole(params, "top_k", TOP_K, 0, 2**31),
            seed=whole(params, "seed", None, -(2**63), 2**63 - 1),
        ),
        stops=(stop,) if stop else (),
        num_visual_tokens=whole(params, "num_visual_tokens", None, 1, 2**20),
    )
