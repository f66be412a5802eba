"""A reply of the engine as an asynchronous stream."""

import asyncio
from collections.abc import AsyncIterator

from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import GenerationRequest, Reply, ReplyEvent


class ReplyStream:
    """The events of one reply; leaving the `async with` block early cancels it.

    ```
    async with ReplyStream(engine, request) as events:
        async for event in events: ...
    ```

    Raises:
        BusyError, RequestError, EngineStoppedError: on entering, see `Engine.submit`.
    """

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request = request
        self._events: asyncio.Queue[ReplyEvent] = asyncio.Queue()
        self._reply: Reply | None = None
        self._is_left = False

    async def __aenter__(self) -> "ReplyStream":
        loop = asyncio.get_running_loop()

        def listen(event: ReplyEvent) -> None:
            if not self._is_left:  # the loop may be closed by then
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._reply = self._engine.submit(self._request, listen)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_left = True
        if not self._reply.is_done:
            self._engine.cancel(self._reply)

    async def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        while True:
            event = await self._events.get()
            yield event
            if event.finish is not None:
                return
