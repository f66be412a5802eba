"""Prometheus metrics of an engine."""

import time
from collections import deque
from collections.abc import Callable

from llava.extras import require_extra

require_extra("prometheus_client", "serve")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: E402

RATE_WINDOW = 10.0  # seconds over which tokens/s is measured
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class EngineMetrics:
    """The counters of one engine, in a registry of their own.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque()
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("llava_requests", "Requests by how they ended.", ["outcome"], registry=r)
        self.prompt_tokens = Counter("llava_prompt_tokens", "Prompt tokens read, visual ones included.", registry=r)
        self.visual_tokens = Counter("llava_visual_tokens", "Visual tokens read.", registry=r)
        self.generated_tokens = Counter("llava_generated_tokens", "Tokens generated.", registry=r)
        self.first_token = Histogram(
            "llava_time_to_first_token_seconds", "From arrival to the first token.", buckets=SECONDS, registry=r
        )
        self.between_tokens = Histogram(
            "llava_time_between_tokens_seconds", "Between two tokens of a reply.", buckets=SECONDS, registry=r
        )
        Gauge("llava_tokens_per_second", f"Over the last {RATE_WINDOW:.0f} s.", registry=r).set_function(
            self.tokens_per_second
        )

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read on request."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def count_tokens(self, count: int) -> None:
        """Count tokens that were generated just now."""
        self.generated_tokens.inc(count)
        self._recent.append((self._clock(), count))
        self._forget()

    def tokens_per_second(self) -> float:
        """Rate over the last `RATE_WINDOW` seconds."""
        self._forget()
        return sum(count for _, count in list(self._recent)) / RATE_WINDOW

    def _forget(self) -> None:
        limit = self._clock() - RATE_WINDOW
        while self._recent and self._recent[0][0] < limit:
            self._recent.popleft()
