"""A headless Chromium for tests of pages; skips where there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOW_TO_GET_ONE = "no browser: pip install playwright; then apt-get install chromium, or playwright install chromium"


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright browser: the system's Chromium or Chrome, else playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason=HOW_TO_GET_ONE)
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    with playwright.sync_playwright() as p:
        path = next(filter(None, found), None) or p.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip(HOW_TO_GET_ONE)
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
