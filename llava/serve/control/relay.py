"""The controller as a router of the OpenAI API: a request goes to a worker of its model. Needs the `serve` extra."""

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava.program import RequestError
from llava.serve import wire
from llava.serve.control.metrics import ControllerMetrics
from llava.serve.control.state import Controller, shown_name
from llava.serve.control.worker_client import HOPS_HEADER, MAX_HOPS, WorkerClient, explain, hops_of
from llava.serve.http_client import read_limited
from llava.serve.http_layer import OpenAIError, model_list, parse_json_object
from llava.serve.live_stream import CLIENT_GONE, LiveStream, run_until_gone

logger = logging.getLogger(__name__)

ENDPOINT = "/v1/chat/completions"
FORWARDED_HEADERS = ("content-type", "authorization")  # others (cookies, ...) are not the worker's business
MAX_REPLY_BYTES = 64 * 2**20
MAX_EVENT_BYTES = 2**20  # of a stream


def request_schema(*required: str, **properties: str) -> dict[str, Any]:
    """The OpenAPI description of a JSON body that is parsed by hand; `properties` maps fields to their types."""
    fields = {name: {"type": kind} for name, kind in properties.items()}
    schema = {"type": "object", "required": list(required), "properties": fields}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def find_worker(controller: Controller, metrics: ControllerMetrics, endpoint: str, model: str | None, hops: int) -> str:
    """The worker for a request, counted in the metrics; empty if there is none, or the controllers form a circle."""
    address = controller.get_worker_address(model) if model is not None and hops < MAX_HOPS else ""
    metrics.relayed.labels(endpoint, "started" if address else "no_worker").inc()
    return address


def no_worker_for(model: str) -> str:
    """The reason of a request that finds no worker."""
    return f"no worker serves the model {shown_name(model)} now"


def openai_routes(controller: Controller, client: WorkerClient, metrics: ControllerMetrics) -> APIRouter:
    """`GET /v1/models` and `POST /v1/chat/completions`."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return model_list(controller.list_models())

    @router.post(ENDPOINT, openapi_extra=request_schema("model", "messages", model="string", messages="array"))
    async def chat_completions(request: Request) -> Response:
        body = await request.body()
        try:
            params = parse_json_object(body)
        except RequestError:
            params = {}
        model = params.get("model")
        if not isinstance(model, str):
            raise OpenAIError(400, "the body must be a JSON object with the name of a model", param="model")
        hops = hops_of(request.headers)
        address = find_worker(controller, metrics, ENDPOINT, model, hops)
        if not address:
            message = f"{no_worker_for(model)}; GET /v1/models lists what is served"
            raise OpenAIError(404, message, code="model_not_found", param="model")
        headers = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
        headers[HOPS_HEADER] = str(hops + 1)
        is_stream = params.get("stream") is True
        answer = await run_until_gone(_forward(client, address, body, headers, is_stream), request.receive)
        return answer if answer is not None else Response(status_code=CLIENT_GONE)

    return router


async def _forward(
    client: WorkerClient, address: str, body: bytes, headers: dict[str, str], is_stream: bool
) -> Response:
    """The worker's answer: an event stream piece by piece, anything else whole.

    Raises:
        OpenAIError: the worker cannot be reached, breaks off, or does not have this endpoint.
    """
    url = address.rstrip("/") + ENDPOINT
    timeout = client.http.timeout if is_stream else client.reply_timeout
    request = client.http.build_request("POST", url, content=body, headers=headers, timeout=timeout)
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
        raise _unreachable(address, error) from error
    if answer.status_code in (404, 405) and b'"error"' not in content:
        raise OpenAIError(400, "the worker of this model has no OpenAI endpoint", "server_error", "not_supported")
    return Response(content, status_code=answer.status_code, headers={"content-type": content_type})


async def _events(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The worker's complete events; a stream that breaks off ends with an error event."""
    rest = b""
    try:
        async for piece in answer.aiter_raw():
            whole, divider, rest = (rest + piece).rpartition(b"\n\n")
            if divider:
                yield whole + divider
            if len(rest) > MAX_EVENT_BYTES:
                raise wire.WireError(f"the worker's event is larger than {MAX_EVENT_BYTES} bytes")
    except (httpx.HTTPError, wire.WireError) as error:
        yield f"data: {json.dumps(_unreachable(str(answer.url), error).body)}\n\n".encode()
    else:
        if rest:
            yield rest


def _unreachable(address: str, error: Exception) -> OpenAIError:
    logger.error("The answer of %s failed: %s: %s", address, type(error).__name__, error)
    return OpenAIError(503, explain(error), "server_error", "worker_unreachable")
