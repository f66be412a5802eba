"""Requests, replies and settings of the engine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from llava.program import RequestError
from llava.serve.engine.images import PreparedImage, bytes_of_weights
from llava.serve.engine.kv_slots import Slot
from llava.serve.engine.prompts import Prompt
from llava.serve.engine.reply_text import ReplyText
from llava.serve.engine.sampling import Sampler, SamplingSettings


class BusyError(RequestError):
    """Too many requests are waiting."""


class ContextFullError(RequestError):
    """The prompt leaves no room for a reply."""


class EngineStoppedError(RuntimeError):
    """The engine was closed, or failed at this request."""


@dataclass(frozen=True)
class EngineSettings:
    """Resources and limits of an engine.

    Attributes:
        max_rows: replies generated at once.
        max_queue: requests that may wait.
        cache_bytes: for keys, values and perceptual weights of running replies.
        image_cache_bytes: for encoded images.
        prefill_chunk: prompt tokens processed between two tokens of the running replies.
        context_length: positions that a prompt and its reply may take together.
    """

    max_rows: int
    max_queue: int
    cache_bytes: int
    image_cache_bytes: int
    prefill_chunk: int
    context_length: int


@dataclass(frozen=True)
class GenerationRequest:
    """One request for a reply.

    Attributes:
        input_ids: IMAGE_TOKEN_INDEX where an image goes.
        max_new_tokens: longest reply.
        images: from `Engine.prepare`, in the order of their markers.
        sampling: how tokens are chosen.
        stops: strings that end the reply.
        num_visual_tokens: budget per image (elastic connectors); None: the model's own.
    """

    input_ids: list[int]
    max_new_tokens: int
    images: tuple[PreparedImage, ...] = ()
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops: tuple[str, ...] = ()
    num_visual_tokens: int | None = None


class Usage(NamedTuple):
    """Tokens of a reply, and seconds from its arrival to its first token (None before that)."""

    prompt_tokens: int
    completion_tokens: int
    visual_tokens: int
    time_to_first_token: float | None


class ReplyEvent(NamedTuple):
    """A reply has grown by a token, or has ended.

    Attributes:
        text: all text so far; later tokens cannot change its first `safe_length` characters.
        usage: tokens so far.
        finish: `stop` (end token or stop string), `length`, `cancelled` or `error`; None while it runs.
        error: why it failed.
    """

    text: str
    safe_length: int
    usage: Usage
    finish: str | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Reply:
    """A request in progress. Callers use `cancel` only; everything else belongs to the engine."""

    request: GenerationRequest
    listener: Callable[[ReplyEvent], None]
    text: ReplyText
    sampler: Sampler
    arrived: float
    prompt: Prompt | None = None
    slot: Slot | None = None
    max_new_tokens: int = 0
    last_token: int = 0
    num_generated: int = 0
    first_token_after: float | None = None
    last_token_at: float = 0.0
    is_cancelled: bool = field(default=False)
    is_done: bool = field(default=False)

    def cancel(self) -> None:
        """Stop generating; the slot is released before the next token. From any thread."""
        self.is_cancelled = True

    @property
    def usage(self) -> Usage:
        prompt, visual = (0, 0) if self.prompt is None else (len(self.prompt), self.prompt.num_visual_tokens)
        return Usage(prompt, self.num_generated, visual, self.first_token_after)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its perceptual weights and of their copy in the batch."""
        return 0 if self.prompt is None else 2 * bytes_of_weights(self.prompt.weights)
