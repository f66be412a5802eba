"""Results of `gpu.py`, item by item: kept in a file, so that an interrupted run goes on where it stopped."""

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.files import write_text_atomically
from llava.program import RequestError

DONE, OUT_OF_MEMORY, FAILED, OUT_OF_TIME, SKIPPED = "done", "out of memory", "failed", "out of time", "skipped"
SETTLED = (DONE, OUT_OF_MEMORY)  # not tried again
WRONG = (FAILED, OUT_OF_TIME)  # the program ends with an error


class TimeUpError(Exception):
    """An item ran when the time of its part was over."""


@dataclass(frozen=True)
class Item:
    """One measurement.

    Attributes:
        name: unique within its part.
        run: returns the figures.
    """

    name: str
    run: Callable[[], dict[str, Any]]


class Results:
    """What was measured so far, by part and item, in one JSON file that is rewritten after every item."""

    def __init__(self, path: Path, environment: dict[str, str], is_fresh: bool = False) -> None:
        """
        Args:
            environment: results of another one are not continued.
            is_fresh: forget what the file holds.

        Raises:
            RequestError: the file holds results of another environment, or none at all.
        """
        self.path, self.environment = path, environment
        self.parts: dict[str, dict[str, dict[str, Any]]] = {}
        if path.exists() and not is_fresh:
            self.parts = self._read()

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        remedy = "add --fresh to measure everything again, or --out for another folder"
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            environment, parts = known["environment"], known["parts"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RequestError(f"{self.path} does not hold results ({error!r}): {remedy}") from error
        for key, value in self.environment.items():
            if environment.get(key) != value:
                was = environment.get(key)
                raise RequestError(f"{self.path} holds results of {key} {was}, but now it is {value}: {remedy}")
        return parts

    def of_part(self, part: str) -> dict[str, dict[str, Any]]:
        """Figures by item, those that are done only."""
        return {name: e["figures"] for name, e in self.parts.get(part, {}).items() if e["status"] == DONE}

    def status(self, part: str, item: str) -> str | None:
        """None if it was never tried."""
        return self.parts.get(part, {}).get(item, {}).get("status")

    def record(self, part: str, item: str, entry: dict[str, Any]) -> None:
        """Keep the entry of an item, in the file, too."""
        self.parts.setdefault(part, {})[item] = entry
        text = json.dumps({"environment": self.environment, "parts": self.parts}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(str(self.path), text + "\n")

    def troubles(self) -> list[str]:
        """One line for each item without figures."""
        return [
            f"{part}/{item}: {entry['status']}: {entry['reason']}"
            for part, items in self.parts.items()
            for item, entry in items.items()
            if entry["status"] != DONE
        ]


def run_items(
    part: str,
    items: list[Item],
    results: Results,
    seconds: float,
    clean_up: Callable[[], None],
    skip_tried: bool = False,
) -> bool:
    """Run the items that are not settled, those first that were never tried. Nothing that an item raises gets out.

    Args:
        part: their part's name.
        items: all of the part.
        results: where they are recorded.
        seconds: limit for all of them together.
        clean_up: frees what an item that failed may have left behind.
        skip_tried: leave out items that failed before, too.

    Returns:
        False if the GPU does not work any more in this process; the items left were not tried.
    """
    deadline = time.monotonic() + seconds
    left = [item for item in items if results.status(part, item.name) not in SETTLED]
    if skip_tried:
        left = [item for item in left if results.status(part, item.name) is None]
    if len(left) < len(items):
        print(f"{part}: {len(items) - len(left)} of {len(items)} items are done already")
    left.sort(key=lambda item: results.status(part, item.name) is not None)
    for number, item in enumerate(left):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            print(f"{part}: time is up before {len(left) - number} items; run it again to go on")
            for late in left[number:]:
                if results.status(part, late.name) is None:
                    results.record(part, late.name, {"status": OUT_OF_TIME, "reason": "not begun"})
            return True
        started = time.monotonic()
        entry = _attempt(item, remaining)
        results.record(part, item.name, entry)
        shown = entry.get("reason") or ", ".join(f"{k} {_short(v)}" for k, v in entry["figures"].items())
        print(f"{part}/{item.name}: {entry['status']} in {time.monotonic() - started:.1f} s: {shown}")
        if entry["status"] != DONE:
            clean_up()
            gc.collect()
            if not _device_works():
                print(f"{part}: the GPU does not answer this process any more")
                return False
    return True


def _attempt(item: Item, seconds: float) -> dict[str, Any]:
    try:
        with time_limit(seconds):
            return {"status": DONE, "figures": item.run()}
    except torch.cuda.OutOfMemoryError as error:
        return {"status": OUT_OF_MEMORY, "reason": _first_line(error)}
    except ModuleNotFoundError as error:
        return {"status": SKIPPED, "reason": str(error)}
    except TimeUpError:
        return {"status": OUT_OF_TIME, "reason": f"stopped after {seconds:.1f} s"}
    except Exception as error:  # whatever it is, the other items are worth measuring
        traceback.print_exc()
        return {"status": FAILED, "reason": f"{type(error).__name__}: {_first_line(error)}"}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _device_works() -> bool:
    """After an illegal access every later call of the process fails."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        return True
    except RuntimeError:
        return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUpError in the main thread when `seconds` are over."""

    def ring(signum: int, frame: Any) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
