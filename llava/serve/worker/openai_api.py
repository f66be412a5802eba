"""The OpenAI-compatible API of a worker: models and chat completions, streamed or whole."""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from llava.image_utils import ImageError
from llava.program import RequestError
from llava.serve.engine.generation import BusyError, ContextFullError, GenerationRequest, ReplyEvent, Usage
from llava.serve.engine.sampling import SamplingSettings
from llava.serve.live_stream import CLIENT_GONE, LiveStream, unless_gone
from llava.serve.model_worker import ModelWorker
from llava.serve.worker.openai_prompt import build_prompt, load_pictures
from llava.serve.worker.openai_schema import MAX_STOPS, ChatRequest
from llava.serve.worker.reply_stream import ReplyStream
from llava.serve.worker.served_model import MAX_STOP_LENGTH, ServedModel

logger = logging.getLogger(__name__)

PATH = "/v1"
ERRORS = {400: {"description": "Bad request"}, 401: {"description": "API key"}, 404: {"description": "Unknown model"}}


class ApiError(Exception):
    """An answer in OpenAI's shape of errors."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status == 503 else {}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def api_error(error: Exception) -> ApiError:
    """What a client is told about a failure; what is not its own fault stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(503, str(error), "server_error", "server_busy")
    if isinstance(error, ContextFullError):
        return ApiError(400, str(error), "invalid_request_error", "context_length_exceeded")
    if isinstance(error, RequestError | ImageError):
        return ApiError(400, str(error), "invalid_request_error")
    logger.error("A request failed.", exc_info=error)
    return ApiError(503, "the request failed in the server; its log says why", "server_error")


def add_openai_api(app: FastAPI, worker: ModelWorker, api_key: str | None = None) -> None:
    """Add `/v1/models` and `/v1/chat/completions` to a worker's application.

    Args:
        api_key: when set, `/v1` wants it as a bearer token.
    """
    served = worker.served
    created = int(time.time())

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(401, "wrong or missing API key", "invalid_request_error", "invalid_api_key")

    @app.exception_handler(ApiError)
    async def answer_api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        if not request.url.path.startswith(PATH):
            return JSONResponse({"message": f"{place}: {first['msg']}"}, status_code=422)
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return ApiError(400, message, "invalid_request_error", param=place or None).response()

    @app.get(f"{PATH}/models", responses=ERRORS)
    async def models(request: Request) -> dict[str, Any]:
        check_key(request)
        entry = {"id": served.name, "object": "model", "created": created, "owned_by": "llava"}
        return {"object": "list", "data": [entry]}

    @app.post(f"{PATH}/chat/completions", responses=ERRORS)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        check_key(request)
        try:
            jobs = await served.take_in(generation_requests, body, served)
            answer = await unless_gone(request, (_streamed if body.stream else _whole)(worker, body, jobs))
        except Exception as error:
            raise api_error(error) from error
        return answer if answer is not None else Response(status_code=CLIENT_GONE)


def generation_requests(body: ChatRequest, served: ServedModel) -> list[GenerationRequest]:
    """What the engine is to do: one request per choice. Loads pictures: not for the event loop's thread.

    Raises:
        ApiError, RequestError, ImageError: the request cannot be done; says why.
    """
    if body.model != served.name:
        message = f"this server has no model '{body.model}', but '{served.name}'"
        raise ApiError(404, message, "invalid_request_error", "model_not_found", "model")
    asked = body.unsupported()
    if asked is not None:
        raise ApiError(400, f"{asked} is not supported", "invalid_request_error", "unsupported_parameter", asked)
    if len(body.stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in body.stops):
        raise RequestError(f"stop: at most {MAX_STOPS} texts of at most {MAX_STOP_LENGTH} characters")
    prompt, urls = build_prompt(body.messages, served.template)
    if urls and not served.is_multimodal:
        raise RequestError(f"'{served.name}' is a plain language model: it takes no pictures")
    sampling = SamplingSettings(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,  # OpenAI knows no such limit
        seed=body.seed,
    )
    request = GenerationRequest(
        input_ids=served.tokenize(prompt),
        pictures=load_pictures(urls, served),
        max_new_tokens=body.new_tokens,
        sampling=sampling,
        stops=body.stops,
        num_visual_tokens=body.num_visual_tokens,
    )
    seeds = [None if body.seed is None else body.seed + i for i in range(body.n or 1)]
    return [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def _usage(choices: list[Usage]) -> dict[str, Any]:
    """Prompt tokens count visual ones, and the prompt once however many choices there are."""
    prompt, completion = choices[0].prompt_tokens, sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": choices[0].visual_tokens},
    }


async def _last_event(worker: ModelWorker, job: GenerationRequest) -> ReplyEvent:
    async with worker.slots.one(), ReplyStream(worker.served.engine, job) as events:
        async for event in events:
            last = event
    if last.error is not None:
        raise last.error
    return last


async def _whole(worker: ModelWorker, body: ChatRequest, jobs: list[GenerationRequest]) -> Response:
    """All choices at once; where one fails, the others end too."""
    tasks = [asyncio.ensure_future(_last_event(worker, job)) for job in jobs]
    try:
        events = await asyncio.gather(*tasks)
    finally:
        await _end(tasks)
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": event.text.strip(), "refusal": None},
            "finish_reason": event.finish,
            "logprobs": None,
        }
        for i, event in enumerate(events)
    ]
    usage = _usage([event.usage for event in events])
    return JSONResponse({**_head(body, "chat.completion"), "choices": choices, "usage": usage})


async def _streamed(worker: ModelWorker, body: ChatRequest, jobs: list[GenerationRequest]) -> Response:
    """Server-sent events. What fails before the first one (a full queue) still gets a status of its own."""
    chunks = _chunks(worker, body, jobs)
    first = await anext(chunks)

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield first
        async for chunk in chunks:
            yield chunk

    headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
    return LiveStream(pieces(), headers=headers, on_end=chunks.aclose)  # also if the pieces are never begun


async def _chunks(worker: ModelWorker, body: ChatRequest, jobs: list[GenerationRequest]) -> AsyncGenerator[bytes, None]:
    head = _head(body, "chat.completion.chunk")
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**head, "choices": [choice]})

    merged: asyncio.Queue[tuple[int, ReplyEvent | Exception]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_forward(worker, job, i, merged)) for i, job in enumerate(jobs)]
    said, usages = [0] * len(jobs), {}
    has_begun = False
    try:
        while len(usages) < len(jobs):
            index, event = await merged.get()
            error = event if isinstance(event, Exception) else event.error
            if error is not None:
                if not has_begun:
                    raise error
                yield _event(api_error(error).body)
                return
            if not has_begun:
                has_begun = True
                for i in range(len(jobs)):
                    yield chunk(i, {"role": "assistant", "content": ""})
            text = event.text[said[index] : event.safe_length]
            text = text.lstrip() if said[index] == 0 else text
            if text:
                said[index] = event.safe_length
                yield chunk(index, {"content": text})
            if event.finish is not None:
                usages[index] = event.usage
                yield chunk(index, {}, event.finish)
        if wants_usage:
            yield _event({**head, "choices": [], "usage": _usage([usages[i] for i in range(len(jobs))])})
        yield b"data: [DONE]\n\n"
    finally:
        await _end(tasks)


async def _end(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(
    worker: ModelWorker, job: GenerationRequest, index: int, merged: "asyncio.Queue[tuple[int, Any]]"
) -> None:
    try:
        async with worker.slots.one(), ReplyStream(worker.served.engine, job) as events:
            async for event in events:
                merged.put_nowait((index, event))
    except Exception as error:
        merged.put_nowait((index, error))


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _head(body: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.model}
