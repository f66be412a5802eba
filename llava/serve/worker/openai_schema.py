"""Requests of the OpenAI-compatible API; unknown fields are ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava.serve.worker.fields import MAX_NEW_TOKENS

MAX_CHOICES, MAX_STOPS, MAX_MESSAGES = 8, 4, 512


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str


class ImagePart(BaseModel):
    """`url` is a `data:` URI, or a web address on an allowed host."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`. `top_k` and `num_visual_tokens` are ours."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=0, le=2**31)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    num_visual_tokens: int | None = Field(default=None, ge=1, le=2**20)
    logprobs: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list | None = None
    functions: list | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    @property
    def new_tokens(self) -> int:
        """Length limit of the reply, at most the server's."""
        return min(self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS, MAX_NEW_TOKENS)

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)

    def unsupported(self) -> str | None:
        """The name of a field that requests an unsupported feature; None if there is none."""
        asked = {
            "logprobs": bool(self.logprobs),
            "tools": bool(self.tools),
            "presence_penalty": bool(self.presence_penalty),
            "frequency_penalty": bool(self.frequency_penalty),
            "functions": bool(self.functions),
            "logit_bias": any((self.logit_bias or {}).values()),
            "response_format": (self.response_format or {"type": "text"}).get("type") != "text",
            "modalities": (self.modalities or ["text"]) != ["text"],
        }
        return next((name for name, is_asked in asked.items() if is_asked), None)
