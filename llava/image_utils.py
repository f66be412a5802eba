"""Old address of `llava.images` and `llava.image_processing`."""

from importlib import import_module

from llava.images import *  # noqa: F403


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("llava.image_processing"), name)
