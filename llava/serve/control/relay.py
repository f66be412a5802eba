"""The controller as a router of OpenAI's API: a request goes to a worker of its model. Needs the `serve` extra."""

import json
import logging
from collections.abc import AsyncGenerator

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from llava.serve import wire
from llava.serve.control.metrics import ControllerMetrics
from llava.serve.control.state import Controller, shown_name
from llava.serve.control.worker_client import HOPS_HEADER, MAX_HOPS, WorkerClient, explain, hops_of, read_limited
from llava.serve.live_stream import CLIENT_GONE, LiveStream, unless_gone

logger = logging.getLogger(__name__)

ENDPOINT = "/v1/chat/completions"
# What a worker has to know of a client's request. Its other headers (cookies, ...) end here.
FORWARDED_HEADERS = ("content-type", "authorization")
MAX_REPLY_BYTES = 64 * 2**20
MAX_EVENT_BYTES = 2**20  # of a stream
REPLY_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "messages"],
                    "properties": {"model": {"type": "string"}, "messages": {"type": "array"}},
                }
            }
        },
    }
}


def openai_error(status: int, message: str, kind: str, code: str | None = None, param: str | None = None) -> Response:
    """An error in the shape that OpenAI's clients read."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status)


def openai_routes(controller: Controller, client: WorkerClient, metrics: ControllerMetrics) -> APIRouter:
    """`GET /v1/models` and `POST /v1/chat/completions`."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict:
        names = controller.list_models()
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "llava"} for name in names],
        }

    @router.post(ENDPOINT, openapi_extra=REPLY_OPENAPI)
    async def chat_completions(request: Request) -> Response:
        body = await request.body()
        model, streaming = _read_request(body)
        if model is None:
            message = "the body must be a JSON object with the name of a model"
            return openai_error(400, message, "invalid_request_error", param="model")
        hops = hops_of(request.headers)
        address = controller.get_worker_address(model) if hops < MAX_HOPS else ""
        if not address:
            metrics.relayed.labels(ENDPOINT, "no_worker").inc()
            message = f"no worker serves the model {shown_name(model)} now; GET /v1/models lists what is served"
            return openai_error(404, message, "invalid_request_error", code="model_not_found", param="model")
        metrics.relayed.labels(ENDPOINT, "started").inc()
        headers = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
        headers[HOPS_HEADER] = str(hops + 1)
        answer = await unless_gone(request, _forward(client, address, body, headers, streaming))
        return answer if answer is not None else Response(status_code=CLIENT_GONE)

    return router


async def _forward(
    client: WorkerClient, address: str, body: bytes, headers: dict[str, str], streaming: bool
) -> Response:
    """The worker's answer: as it comes if it is an event stream, else whole."""
    request = client.http.build_request(
        "POST",
        address.rstrip("/") + ENDPOINT,
        content=body,
        headers=headers,
        timeout=client.stream_timeout() if streaming else client.reply_timeout(),
    )
    try:
        answer = await client.http.send(request, stream=True)
        content_type = answer.headers.get("content-type", "application/json")
        if content_type.startswith("text/event-stream"):
            return LiveStream(_events(answer), answer.status_code, {"content-type": content_type}, on_end=answer.aclose)
        try:
            content = await read_limited(answer, MAX_REPLY_BYTES)
        finally:
            await answer.aclose()
    except (httpx.HTTPError, wire.WireError) as error:
        logger.error("The answer of %s failed: %s: %s", address, type(error).__name__, error)
        return openai_error(503, explain(error), "server_error", code="worker_unreachable")
    if answer.status_code in (404, 405) and b'"error"' not in content:
        return openai_error(400, "the worker of this model has no OpenAI endpoint", "server_error", "not_supported")
    return Response(content, status_code=answer.status_code, headers={"content-type": content_type})


async def _events(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The worker's events, each whole; a stream that breaks off ends with an event that says so."""
    rest = b""
    try:
        async for piece in answer.aiter_raw():
            whole, divider, rest = (rest + piece).rpartition(b"\n\n")
            if divider:
                yield whole + divider
            if len(rest) > MAX_EVENT_BYTES:
                raise wire.WireError(f"the worker's event is larger than {MAX_EVENT_BYTES} bytes")
    except (httpx.HTTPError, wire.WireError) as error:
        logger.error("An event stream broke off: %s: %s", type(error).__name__, error)
        failure = {"message": explain(error), "type": "server_error", "param": None, "code": "worker_unreachable"}
        yield f"data: {json.dumps({'error': failure})}\n\n".encode()
    else:
        if rest:
            yield rest


def _read_request(body: bytes) -> tuple[str | None, bool]:
    """Name of the model, None if the request is not a proper one; and whether the reply shall be streamed."""
    try:
        request = json.loads(body)
        model, streaming = request["model"], request.get("stream")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None, False
    return (model if isinstance(model, str) else None), streaming is True
