"""Requests on their way to a cache slot: one FIFO queue with one limit, and the encoder thread for their images."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from llava.serve.engine.generation import BusyError, EngineSettings, EngineStoppedError, GenerationRequest, Reply
from llava.serve.engine.prompts import Prompt

EndReply = Callable[[Reply, str, Exception | None], None]


class RequestQueue:
    """Requests wait in FIFO order. Those with images join the line when their prompts are embedded.

    Args:
        settings: the limit is `max_rows + max_queue` requests that are parsed, wait or run.
        embed: embeds a prompt; called from the encoder thread.
        num_active: requests that run.
        end: called with replies that end while they are encoded: reply, reason, error.
    """

    def __init__(
        self,
        settings: EngineSettings,
        embed: Callable[[GenerationRequest], Prompt],
        num_active: Callable[[], int],
        end: EndReply,
    ) -> None:
        self._limit, self._max_embedded = settings.max_rows + settings.max_queue, settings.max_rows
        self._embed, self._num_active, self._end = embed, num_active, end
        self._encoding: dict[Reply, Future[None]] = {}  # in the line of the encoder thread
        self._embedded: set[Reply] = set()  # prompts with images that wait for a slot
        self._incoming: deque[Reply] = deque()  # handed to the engine thread at its next `wait`
        self._waiting: deque[Reply] = deque()  # of the engine thread
        self._num_parsing = 0
        self._num_submitted = 0  # without a slot
        self._changed = threading.Condition()
        self._is_closed = False
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="llava-encoder")

    def __len__(self) -> int:
        """Requests without a slot, those that are still being parsed included."""
        return self._num_parsing + self._num_submitted

    # Called from any thread.

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place while a request is parsed.

        Raises:
            BusyError: the queue is full.
        """
        with self._changed:
            self._check_room()
            self._num_parsing += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_parsing -= 1

    def submit(self, reply: Reply) -> None:
        """Append a request.

        Raises:
            BusyError: the queue is full.
            EngineStoppedError: the queue is closed.
        """
        with self._changed:
            if self._is_closed:
                raise EngineStoppedError("the server is stopping")
            self._check_room()
            self._num_submitted += 1
            if reply.request.images:
                self._encoding[reply] = self._encoder.submit(self._encode, reply)
            else:
                self._incoming.append(reply)
                self._changed.notify_all()

    def cancel(self, reply: Reply) -> None:
        """End a cancelled reply whose images wait to be encoded, and wake up the threads for any other."""
        with self._changed:
            job = self._encoding.get(reply)
            was_waiting = job is not None and job.cancel()
            if was_waiting:
                del self._encoding[reply]
                self._num_submitted -= 1
            self._changed.notify_all()
        if was_waiting:
            self._end(reply, "cancelled", None)

    def close(self) -> None:
        """Accept no further requests; `wait` returns False from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def drain(self) -> list[Reply]:
        """Stop the encoder thread and remove all requests; for a closed queue."""
        self._encoder.shutdown(cancel_futures=True)
        with self._changed:
            left = [*self._encoding, *self._incoming, *self._waiting]
            for replies in (self._encoding, self._embedded, self._incoming, self._waiting):
                replies.clear()
            self._num_submitted = 0
        return left

    def _check_room(self) -> None:
        if len(self) + self._num_active() >= self._limit:
            raise BusyError(f"the server is busy: {len(self)} requests are waiting; try again in a moment")

    # The encoder thread.

    def _encode(self, reply: Reply) -> None:
        """Embed the prompt of one request, but not far ahead of the slots: embedded prompts take device memory."""
        with self._changed:
            while len(self._embedded) >= self._max_embedded and not (self._is_closed or reply.is_cancelled):
                self._changed.wait()
            if self._is_closed:
                return  # `drain` returns it
        error = None
        try:
            if not reply.is_cancelled:
                reply.prompt = self._embed(reply.request)
        except Exception as caught:
            error = caught
        with self._changed:
            del self._encoding[reply]
            if error is None:
                self._embedded.add(reply)
                self._incoming.append(reply)
                self._changed.notify_all()
            else:
                self._num_submitted -= 1
        if error is not None:
            self._end(reply, "error", error)

    # The engine thread.

    def wait(self) -> bool:
        """Wait until a request waits or runs; False when the queue is closed."""
        with self._changed:
            while not (self._is_closed or self._incoming or self._waiting or self._num_active()):
                self._changed.wait()
            self._waiting.extend(self._incoming)
            self._incoming.clear()
            return not self._is_closed

    @property
    def first(self) -> Reply | None:
        """The request that is next; None if none waits."""
        return self._waiting[0] if self._waiting else None

    def cancelled(self) -> list[Reply]:
        """Waiting requests whose clients hung up."""
        return [reply for reply in self._waiting if reply.is_cancelled]

    def remove(self, reply: Reply) -> None:
        """Remove a waiting request."""
        self._waiting.remove(reply)
        with self._changed:
            self._num_submitted -= 1
            self._embedded.discard(reply)
            self._changed.notify_all()
