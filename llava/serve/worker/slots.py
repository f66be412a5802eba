"""A FIFO queue for back ends that have none: how many requests run at once, and how many may wait."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llava.program import RequestError


class Slots:
    """`limit` slots, given out in FIFO order; works across event loops and threads.

    An `asyncio.Semaphore` belongs to one event loop; the synchronous `generate_stream` of a worker runs on another one
    than its server.

    Args:
        limit: requests that run at once.
        max_waiting: requests that may wait; further ones are refused.
    """

    def __init__(self, limit: int, max_waiting: int) -> None:
        self.limit = limit
        self.max_waiting = max_waiting
        self._used = 0
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Requests that run or wait."""
        return self._used + len(self._waiting)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot during a block.

        Raises:
            RequestError: too many requests are waiting.
        """
        await self._take()
        try:
            yield
        finally:
            self._give_back()

    async def _take(self) -> None:
        with self._lock:
            if self._used < self.limit:
                self._used += 1
                return
            if len(self._waiting) >= self.max_waiting:
                raise RequestError(f"the server is busy: {len(self._waiting)} requests are waiting; try again")
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn  # a slot that is passed on stays counted as used
        except asyncio.CancelledError:
            with self._lock:
                still_waiting = turn in self._waiting
                if still_waiting:
                    self._waiting.remove(turn)
            if not still_waiting:  # the slot had been passed on already
                self._give_back()
            raise

    def _give_back(self) -> None:
        """Pass the slot on to the first waiting request, or free it."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                try:
                    turn.get_loop().call_soon_threadsafe(_wake, turn)
                except RuntimeError:  # its event loop has been closed
                    continue
                return
            self._used -= 1


def _wake(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)
