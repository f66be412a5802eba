"""Suppress transformers' loading report where it would mislead."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading_report(quiet: bool = True) -> Iterator[None]:
    """Inside the block, missing weights are not reported, because they are loaded afterwards; errors still are."""
    report = logging.getLogger("transformers.modeling_utils")
    level = report.level
    try:
        report.setLevel(logging.ERROR if quiet else level)
        yield
    finally:
        report.setLevel(level)
