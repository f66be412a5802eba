"""Requests to `/worker_generate_stream` of a worker with a model: their fields, and their frames."""

import logging
from collections.abc import AsyncGenerator
from typing import Any

from llava.program import RequestError
from llava.serve import wire
from llava.serve.engine.generation import ContextFullError, GenerationRequest
from llava.serve.engine.reply_text import whole_words
from llava.serve.engine.sampling import TOP_K, SamplingSettings
from llava.serve.worker.fields import MAX_NEW_TOKENS, MAX_STOP_LENGTH, image_files, number, whole
from llava.serve.worker.reply_stream import ReplyStream
from llava.serve.worker.served_model import ServedModel

logger = logging.getLogger(__name__)

CONTEXT_FULL = "Exceeds max token length. Please start a new conversation, thanks."


async def stream_frames(params: dict[str, Any], served: ServedModel) -> AsyncGenerator[bytes, None]:
    """One frame per token with all text so far, and a last one with the complete text.

    Raises:
        RequestError, ImageError: a field or an image cannot be used.
        Exception: the error of the engine.
    """
    prompt = params["prompt"]
    try:
        request = await served.parse(generation_request, params, served)
        async with ReplyStream(served.engine, request) as events:
            async for event in events:
                if event.error is not None:
                    raise event.error
                if event.finish is None:
                    yield wire.frame(prompt + whole_words(event.text[: event.safe_length]))
                else:
                    extra = {"usage": event.usage._asdict()} if wire.wants_details(params) else {}
                    yield wire.frame(prompt + event.text, **extra)
    except ContextFullError as error:
        logger.info("A prompt is too long: %s", error)
        yield wire.frame(prompt + CONTEXT_FULL)


def generation_request(params: dict[str, Any], served: ServedModel) -> GenerationRequest:
    """Validate a request and decode its images; not for the event loop's thread.

    Raises:
        RequestError, ImageError: a field or an image cannot be used; names it.
        ContextFullError: the prompt is far too long.
    """
    prompt = params["prompt"]
    files = image_files(params) if served.is_multimodal else []  # ignored by language models, as in upstream
    served.limits.check_count(len(files))
    served.check_markers(prompt, len(files))
    stop = params.get("stop")
    if stop is not None and not (isinstance(stop, str) and len(stop) <= MAX_STOP_LENGTH):
        raise RequestError(f"stop must be a text of at most {MAX_STOP_LENGTH} characters, or null")
    return GenerationRequest(
        input_ids=served.tokenize(prompt),
        images=tuple(served.engine.prepare(served.limits.decode_base64(file)) for file in files),
        max_new_tokens=min(whole(params, "max_new_tokens", 256, -(2**31), 2**31), MAX_NEW_TOKENS),
        sampling=SamplingSettings(
            temperature=number(params, "temperature", 1.0, 0.0, 100.0),
            top_p=number(params, "top_p", 1.0, 0.0, 1.0),
            top_k=whole(params, "top_k", TOP_K, 0, 2**31),
            seed=whole(params, "seed", None, -(2**63), 2**63 - 1),
        ),
        stops=(stop,) if stop else (),
        num_visual_tokens=whole(params, "num_visual_tokens", None, 1, 2**20),
    )
