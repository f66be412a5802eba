"""Validation of the fields of requests to `/worker_generate_stream`. Runs without torch."""

import math
from typing import Any

from llava.program import RequestError

MAX_NEW_TOKENS = 1024  # of one reply, whatever is requested
MAX_STOP_LENGTH = 256  # characters of a stop string


def number(params: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number, or a string that contains one (old clients send both).

    Raises:
        RequestError: anything else, or not within `low` and `high`.
    """
    value = _parse(params, name, float)
    if value is None:
        return default
    if not low <= value <= high:  # also NaN
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}")
    return value


def whole(params: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    """As `number`, without a fraction.

    Raises:
        RequestError: see `number`.
    """
    value = _parse(params, name, int)
    if value is None:
        return default
    if not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}")
    return int(value)


def image_files(params: dict[str, Any]) -> list[str]:
    """The base64 files of `images`; an empty list without any.

    Raises:
        RequestError: not a list of strings.
    """
    images = params.get("images") or []
    if not isinstance(images, list | tuple) or not all(isinstance(image, str) for image in images):
        raise RequestError("images must be a list of base64 encoded files")
    return list(images)


def _parse(params: dict[str, Any], name: str, kind: type[int] | type[float]) -> float | None:
    """The field as a number; None if it is missing, NaN if it is not a number."""
    given = params.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return math.nan
    try:
        return kind(given)
    except (ValueError, OverflowError):
        return math.nan
