"""A request for a reply, and the reply as it grows: what the engine, its batch and its callers share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from llava.program import RequestError
from llava.serve.engine.kv_slots import Slot
from llava.serve.engine.prompts import PreparedPicture, Prompt, bytes_of_weights
from llava.serve.engine.reply_text import ReplyText
from llava.serve.engine.sampling import Sampler, SamplingSettings


class BusyError(RequestError):
    """Too many requests wait already."""


class ContextFullError(RequestError):
    """The prompt leaves no room for a reply."""


class EngineStoppedError(RuntimeError):
    """The engine was closed, or failed at this request."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine shares the machine.

    Attributes:
        max_rows: replies that run at once.
        max_queue: requests that may wait for a place.
        cache_bytes: for keys, values and perceptual weights of running replies.
        picture_cache_bytes: for encoded pictures.
        prefill_chunk: prompt tokens read between two tokens of the running replies.
        context_length: positions that a prompt and its reply may take together.
    """

    max_rows: int
    max_queue: int
    cache_bytes: int
    picture_cache_bytes: int
    prefill_chunk: int
    context_length: int


@dataclass(frozen=True)
class GenerationRequest:
    """What to reply to.

    Attributes:
        input_ids: IMAGE_TOKEN_INDEX where a picture goes.
        pictures: from `Engine.prepare`.
        num_visual_tokens: budget per picture (elastic connectors); None is the model's own.
        stops: strings that end the reply.
    """

    input_ids: list[int]
    max_new_tokens: int
    pictures: tuple[PreparedPicture, ...] = ()
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops: tuple[str, ...] = ()
    num_visual_tokens: int | None = None


class Usage(NamedTuple):
    """What a reply took: tokens, and seconds from arrival to the first token (None before it)."""

    prompt_tokens: int
    completion_tokens: int
    visual_tokens: int
    time_to_first_token: float | None


class ReplyEvent(NamedTuple):
    """A reply has grown by a token, or has ended.

    Attributes:
        text: all of it so far; the first `safe_length` characters stay whatever comes.
        finish: `stop` (end token or stop string), `length`, `cancelled` or `error`; None while it runs.
    """

    text: str
    safe_length: int
    usage: Usage
    finish: str | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Reply:
    """A request under way. Everything but `cancel` is the engine's."""

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
        """Nobody reads this reply any more; its place is free before the next token. From any thread."""
        self.is_cancelled = True

    @property
    def usage(self) -> Usage:
        prompt, visual = (0, 0) if self.prompt is None else (len(self.prompt), self.prompt.num_visual_tokens)
        return Usage(prompt, self.num_generated, visual, self.first_token_after)

    @property
    def weight_bytes(self) -> int:
        """Its own perceptual weights, and their copy in the batch."""
        return 0 if self.prompt is None else 2 * bytes_of_weights(self.prompt.weights)
