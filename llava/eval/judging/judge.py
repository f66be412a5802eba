"""The judge: a language model behind an OpenAI-compatible server, asked with bounded retries."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from llava.extras import require_extra
from llava.program import RequestError

Item = TypeVar("Item")
Result = TypeVar("Result")

_LONGEST_PAUSE = 30.0
_LONGEST_CAUSE = 300
# Statuses of a busy or broken server, which may recover. Any other refusal would only be repeated.
_PASSING = (408, 409, 425, 429)
# Refusals of a single question: too long, or against the server's rules.
_OF_ONE_QUESTION = (400, 413, 422)


class JudgeUnreachableError(RequestError):
    """The judge gave no reply in any try."""


class QuestionRefusedError(RequestError):
    """The server refuses this question, but may answer others."""


@dataclass(frozen=True)
class JudgeOptions:
    """Server, model and decoding of a judge.

    Attributes:
        model: name of the model at the server.
        base_url: address of the server including `/v1`; None means OPENAI_BASE_URL, else OpenAI's server.
        temperature: sampling temperature.
        max_tokens: longest reply.
        retries: number of further tries if the server is busy, broken or unreachable.
        pause: seconds before the first retry; doubled each time.
        timeout: seconds per try.
    """

    model: str
    base_url: str | None = None
    temperature: float = 0.2
    max_tokens: int = 1024
    retries: int = 5
    pause: float = 0.5
    timeout: float = 120.0


class Judge:
    """A client that asks one question at a time. Thread-safe.

    The API key is OPENAI_API_KEY; a server of your own (`base_url`) may need none.

    Raises:
        ImportError: `openai` is missing.
        RequestError: the server is OpenAI's, but there is no key.
    """

    def __init__(self, options: JudgeOptions) -> None:
        require_extra("openai", "eval")
        import openai

        key = os.environ.get("OPENAI_API_KEY")
        own_server = options.base_url or os.environ.get("OPENAI_BASE_URL")
        if not key and not own_server:
            raise RequestError("there is no OPENAI_API_KEY; set it, or name a server of your own with --judge-base-url")
        self.options = options
        self._key = key
        self._client = openai.OpenAI(
            base_url=options.base_url, api_key=key or "none", max_retries=0, timeout=options.timeout
        )
        # For messages: without a user name and password.
        self._server = str(self._client.base_url.copy_with(userinfo=b""))
        self._limit = "max_tokens"

    def ask(self, system: str, user: str) -> str:
        """Return the reply to a user message.

        Raises:
            RequestError: the server refuses the request, and would refuse it again.
            QuestionRefusedError: the server refuses this question, but may answer others.
            JudgeUnreachableError: the server gave no reply in any try.
        """
        import openai

        pause = self.options.pause
        for attempt in range(self.options.retries + 1):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                reply = self._ask_once(system, user)
            except openai.APIStatusError as error:
                if not _may_pass(error):
                    refusal = QuestionRefusedError if error.status_code in _OF_ONE_QUESTION else RequestError
                    raise refusal(self._refusal(error)) from error
                last: Exception = error
            except (openai.APIError, ValueError, RecursionError) as error:  # no connection, timeout, or half a reply
                last = error
            else:
                return self._text_of(reply)
        raise JudgeUnreachableError(
            f"the judge at {self._server} gave no reply in {self.options.retries + 1} tries ({self._plain(last)}); "
            "what was judged so far is kept"
        ) from last

    def _ask_once(self, system: str, user: str) -> Any:
        import openai

        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        request = {"model": self.options.model, "messages": messages, "temperature": self.options.temperature}
        limit = self._limit  # another thread may change it during the request
        try:
            return self._client.chat.completions.create(**request, **{limit: self.options.max_tokens})
        except openai.BadRequestError as error:
            if limit == "max_completion_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._limit = limit = "max_completion_tokens"  # the only name that newer models accept
            return self._client.chat.completions.create(**request, **{limit: self.options.max_tokens})

    def _text_of(self, reply: Any) -> str:
        """Return the text of a reply; an empty text if it has none.

        Raises:
            RequestError: the reply is no chat completion: this is some other server.
        """
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list):
            raise RequestError(f"{self._server} is no OpenAI-compatible server; --judge-base-url must include /v1")
        message = getattr(choices[0], "message", None) if choices else None
        content = getattr(message, "content", None)
        return content if isinstance(content, str) else ""

    def _refusal(self, error: Any) -> str:
        remedies = {
            401: "check OPENAI_API_KEY",
            403: "check OPENAI_API_KEY and what it may use",
            404: f"it may have no model {self.options.model!r} (any more): see --judge-model and --judge-base-url",
            429: "the account has no quota left",
        }
        remedy = remedies.get(error.status_code, "see --judge-model")
        return f"the judge at {self._server} refused: {self._plain(error)}; {remedy}"

    def _plain(self, error: Exception) -> str:
        """Return the cause on one line, without the API key, which some servers send back."""
        text = " ".join(str(error).split())
        return (text.replace(self._key, "***") if self._key else text)[:_LONGEST_CAUSE]


def _may_pass(error: Any) -> bool:
    if getattr(error, "code", None) == "insufficient_quota":
        return False
    return error.status_code >= 500 or error.status_code in _PASSING


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], parallel: int) -> Iterator[Result]:
    """Yield `function(item)` in the order of the items, `parallel` at once; an error ends it and cancels the rest."""
    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
