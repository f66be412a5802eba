"""The HTTP side of a worker (contract: serve.md 2 and 3). Needs the `serve` extra."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from llava.program import RequestError
from llava.serve import wire
from llava.serve.http_layer import BodyLimit, NoPages
from llava.serve.live_stream import LiveStream
from llava.serve.worker.base import BaseWorker

logger = logging.getLogger(__name__)

# The body is parsed by hand (a malformed one is a frame, not a status), so the schema is written by hand too.
REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "model": {"type": "string"},
        "images": {"type": ["array", "null"], "items": {"type": "string"}},
        "temperature": {"type": "number"},
        "top_p": {"type": "number"},
        "max_new_tokens": {"type": "integer"},
        "stop": {"type": ["string", "null"]},
    },
}
STREAM_OPENAPI = {"requestBody": {"required": True, "content": {"application/json": {"schema": REQUEST_SCHEMA}}}}


def build_app(worker: BaseWorker, max_body_bytes: int, extra_routers: Sequence[APIRouter]) -> FastAPI:
    """See `worker_base.create_worker_app`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(title="LLaVA worker", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(NoPages)  # the last one added is asked first

    @app.post("/worker_generate_stream", openapi_extra=STREAM_OPENAPI)
    async def generate_stream(request: Request) -> Response:
        return LiveStream(_answer(worker, await request.body()))

    @app.post("/worker_get_status")
    async def get_status() -> dict[str, Any]:
        return worker.get_status()

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        if not worker.is_healthy:
            response.status_code = 503
            return {"status": "the engine has stopped; restart the worker"}
        return {"status": "ok"}

    for router in extra_routers:
        app.include_router(router)
    return app


async def _answer(worker: BaseWorker, body: bytes) -> AsyncGenerator[bytes, None]:
    try:
        params = parse_request(body)
    except RequestError as error:
        logger.info("A request cannot be read: %s", error)
        yield wire.error_frame(wire.WORKER_FAILED)
        return
    async with aclosing(worker.stream_gate(params)) as frames:
        async for frame in frames:
            yield frame


def parse_request(body: bytes) -> dict[str, Any]:
    """The fields of a request for a stream.

    Raises:
        RequestError: not a JSON object, or without a prompt.
    """
    try:
        params = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("the request is not JSON") from error
    if not isinstance(params, dict):
        raise RequestError("the request is no JSON object")
    if not isinstance(params.get("prompt"), str):
        raise RequestError("the request has no prompt: a text is needed")
    return params
