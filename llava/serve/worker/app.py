"""The HTTP endpoints of a worker. Needs the `serve` extra."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from llava.program import RequestError
from llava.serve import wire
from llava.serve.access import MAX_REQUEST_MB
from llava.serve.http_layer import handle_errors, parse_json_object, protect
from llava.serve.live_stream import LiveStream
from llava.serve.worker.base import BaseWorker

logger = logging.getLogger(__name__)

# The body is parsed by hand, as a malformed one is answered with a frame; so the schema is written by hand, too.
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


def create_worker_app(
    worker: BaseWorker, *, max_body_bytes: int = MAX_REQUEST_MB * 2**20, extra_routers: Sequence[APIRouter] = ()
) -> FastAPI:
    """The web application of a worker; its start calls `worker.start`, its end `worker.stop`.

    Args:
        worker: answers the requests.
        max_body_bytes: larger requests are answered with 413 before they are parsed.
        extra_routers: further endpoints of this kind of worker.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(title="LLaVA worker", lifespan=lifespan)
    protect(app, max_body_bytes)
    handle_errors(app, status=422)

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
        params = parse_json_object(body)
        if not isinstance(params.get("prompt"), str):
            raise RequestError("the request has no prompt, which must be a string")
    except RequestError as error:
        logger.info("A request cannot be parsed: %s", error)
        yield wire.error_frame(wire.WORKER_FAILED)
        return
    async with aclosing(worker.stream_gate(params)) as frames:
        async for frame in frames:
            yield frame
