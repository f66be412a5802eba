"""The OpenAI-compatible API of a worker: models and chat completions, streamed or whole."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from llava.images import ImageError
from llava.program import RequestError
from llava.serve.access import shows_api_key
from llava.serve.engine.generation import BusyError, ContextFullError, GenerationRequest, ReplyEvent, Usage
from llava.serve.engine.sampling import SamplingSettings
from llava.serve.http_layer import OPENAI_PATH, OpenAIError, model_list
from llava.serve.live_stream import CLIENT_GONE, LiveStream, run_until_gone
from llava.serve.worker.fields import MAX_STOP_LENGTH
from llava.serve.worker.openai_prompt import load_images, prompt_from_messages
from llava.serve.worker.openai_schema import MAX_STOPS, ChatRequest
from llava.serve.worker.reply_stream import ReplyStream
from llava.serve.worker.served_model import ServedModel

logger = logging.getLogger(__name__)

ERRORS = {400: {"description": "Bad request"}, 401: {"description": "API key"}, 404: {"description": "Unknown model"}}


def openai_error(error: Exception) -> OpenAIError:
    """The error that a client sees; details of failures that are not its fault stay in the log."""
    if isinstance(error, OpenAIError):
        return error
    if isinstance(error, BusyError):
        return OpenAIError(503, str(error), "server_error", "server_busy")
    if isinstance(error, ContextFullError):
        return OpenAIError(400, str(error), code="context_length_exceeded")
    if isinstance(error, RequestError | ImageError):
        return OpenAIError(400, str(error))
    logger.error("A request failed.", exc_info=error)
    return OpenAIError(503, "the request failed in the server; see its log", "server_error")


def openai_router(served: ServedModel, api_key: str | None = None) -> APIRouter:
    """`GET /v1/models` and `POST /v1/chat/completions`.

    Args:
        served: the model that answers.
        api_key: required as a bearer token if set.
    """
    created = int(time.time())

    def check_key(request: Request) -> None:
        if not shows_api_key(api_key, request.headers.get("authorization", "")):
            raise OpenAIError(401, "wrong or missing API key", code="invalid_api_key")

    router = APIRouter(prefix=OPENAI_PATH, dependencies=[Depends(check_key)])

    @router.get("/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        return model_list([served.name], created)

    @router.post("/chat/completions", responses=ERRORS)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        try:
            jobs = await served.parse(generation_requests, body, served)
            reply = _streamed(served, body, jobs) if body.stream else _whole(served, body, jobs)
            answer = await run_until_gone(reply, request.receive)
        except Exception as error:
            raise openai_error(error) from error
        return answer if answer is not None else Response(status_code=CLIENT_GONE)

    return router


def generation_requests(body: ChatRequest, served: ServedModel) -> list[GenerationRequest]:
    """The requests for the engine, one per choice. Loads images; not for the event loop's thread.

    Raises:
        OpenAIError, RequestError, ImageError: the request cannot be fulfilled.
    """
    if body.model != served.name:
        message = f"this server has no model '{body.model}'; it serves '{served.name}'"
        raise OpenAIError(404, message, code="model_not_found", param="model")
    asked = body.unsupported()
    if asked is not None:
        raise OpenAIError(400, f"{asked} is not supported", code="unsupported_parameter", param=asked)
    if len(body.stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in body.stops):
        raise RequestError(f"stop: at most {MAX_STOPS} texts of at most {MAX_STOP_LENGTH} characters")
    prompt, urls = prompt_from_messages(body.messages, served.template)
    if urls and not served.is_multimodal:
        raise RequestError(f"'{served.name}' is a plain language model: it takes no images")
    sampling = SamplingSettings(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,  # OpenAI has no such limit
        seed=body.seed,
    )
    request = GenerationRequest(
        input_ids=served.tokenize(prompt),
        images=load_images(urls, served),
        max_new_tokens=body.new_tokens,
        sampling=sampling,
        stops=body.stops,
        num_visual_tokens=body.num_visual_tokens,
    )
    seeds = [None if body.seed is None else body.seed + i for i in range(body.n or 1)]
    return [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def _usage(choices: list[Usage]) -> dict[str, Any]:
    """Token counts: visual tokens are prompt tokens, and the prompt counts once for all choices."""
    prompt, completion = choices[0].prompt_tokens, sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": choices[0].visual_tokens},
    }


async def _last_event(served: ServedModel, job: GenerationRequest) -> ReplyEvent:
    async with ReplyStream(served.engine, job) as events:
        async for event in events:
            last = event
    if last.error is not None:
        raise last.error
    return last


async def _whole(served: ServedModel, body: ChatRequest, jobs: list[GenerationRequest]) -> Response:
    """All choices at once; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(_last_event(served, job)) for job in jobs]
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


async def _streamed(served: ServedModel, body: ChatRequest, jobs: list[GenerationRequest]) -> Response:
    """Server-sent events. A failure before the first one (a full queue) still gets an HTTP status."""
    chunks = _chunks(served, body, jobs)
    first = await anext(chunks)

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield first
        async for chunk in chunks:
            yield chunk

    headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
    return LiveStream(pieces(), headers=headers, on_end=chunks.aclose)  # even if the pieces are never started


async def _chunks(served: ServedModel, body: ChatRequest, jobs: list[GenerationRequest]) -> AsyncGenerator[bytes, None]:
    head = _head(body, "chat.completion.chunk")
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**head, "choices": [choice]})

    merged: asyncio.Queue[tuple[int, ReplyEvent | Exception]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_forward(served, job, i, merged)) for i, job in enumerate(jobs)]
    said, usages = [0] * len(jobs), {}
    has_started = False
    try:
        while len(usages) < len(jobs):
            index, event = await merged.get()
            error = event if isinstance(event, Exception) else event.error
            if error is not None:
                if not has_started:
                    raise error
                yield _event(openai_error(error).body)
                return
            if not has_started:
                has_started = True
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
    served: ServedModel, job: GenerationRequest, index: int, merged: "asyncio.Queue[tuple[int, Any]]"
) -> None:
    try:
        async with ReplyStream(served.engine, job) as events:
            async for event in events:
                merged.put_nowait((index, event))
    except Exception as error:
        merged.put_nowait((index, error))


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _head(body: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.model}
