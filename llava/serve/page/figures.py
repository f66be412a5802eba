"""What a reply cost, for the line under it: tokens, time to the first one, rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A reply that is shorter tells no rate: its pieces may have come in one packet.
FEWEST_TOKENS = 4
SHORTEST = 0.02  # seconds


@dataclass(frozen=True)
class ReplyFigures:
    """Measured for one reply; None is not known (an old worker does not tell).

    Attributes:
        visual_tokens: positions of the prompt taken by pictures.
        completion_tokens: length of the reply.
        first_token: seconds from the request to the first piece of text.
        rate: tokens per second after the first one.
        stopped: whether the visitor ended the reply.
    """

    visual_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    rate: float | None = None
    stopped: bool = False

    def caption(self) -> str:
        """All that is known in one line."""
        parts = []
        if self.visual_tokens is not None:
            parts.append(_count(self.visual_tokens, "visual token"))
        if self.completion_tokens is not None:
            parts.append(_count(self.completion_tokens, "token"))
        if self.first_token is not None:
            parts.append(f"first after {_seconds(self.first_token)}")
        if self.rate is not None:
            parts.append(f"{self.rate:.1f} tokens/s")
        if self.stopped:
            parts.append("stopped")
        return " · ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _seconds(time_passed: float) -> str:
    return f"{time_passed * 1000:.0f} ms" if time_passed < 1 else f"{time_passed:.1f} s"


class Stopwatch:
    """Times the pieces of one reply.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._last = self._start
        self._pieces = 0

    def frame(self, has_grown: bool) -> None:
        """A frame has come; the first one with text begins the reply."""
        self._last = self._clock()
        self._pieces += has_grown
        if self._first is None and has_grown:
            self._first = self._last

    def figures(self, usage: Any, stopped: bool) -> ReplyFigures:
        """The result; what the worker reports in its last frame goes before what was seen from here."""
        usage = usage if isinstance(usage, dict) else {}
        if self._first is None:
            return ReplyFigures(visual_tokens=_number(usage, "visual_tokens"), stopped=stopped)
        tokens = _number(usage, "completion_tokens") or self._pieces
        first = _number(usage, "time_to_first_token")
        spent = self._last - self._first
        return ReplyFigures(
            visual_tokens=_number(usage, "visual_tokens"),
            completion_tokens=tokens,
            first_token=self._first - self._start if first is None else first,
            rate=(tokens - 1) / spent if tokens >= FEWEST_TOKENS and spent >= SHORTEST else None,
            stopped=stopped,
        )


def _number(usage: dict[str, Any], key: str) -> Any:
    value = usage.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
