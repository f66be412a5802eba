"""A language model behind an OpenAI-compatible server that judges (or answers) text (contract: eval.md 4.6)."""

import argparse
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
# A server that is busy or broken may recover; whatever else it refuses, it will refuse again (E-11).
_PASSING = (408, 409, 425, 429)
# What a server may say to one question and not to the next: too long, or against its rules.
_OF_ONE_QUESTION = (400, 413, 422)


class JudgeUnreachableError(RequestError):
    """No reply after all tries."""


class QuestionRefusedError(RequestError):
    """The server refuses this question; others it may answer."""


@dataclass(frozen=True)
class JudgeOptions:
    """How the judge is asked.

    Attributes:
        model: its name at the server.
        base_url: of the server, up to and with `/v1`; None is OPENAI_BASE_URL, else OpenAI's.
        temperature: of its replies.
        max_tokens: longest reply.
        retries: further tries when the server is busy, broken or out of reach.
        pause: seconds before the first of them; doubled each time.
        timeout: seconds for one try.
    """

    model: str
    base_url: str | None = None
    temperature: float = 0.2
    max_tokens: int = 1024
    retries: int = 5
    pause: float = 0.5
    timeout: float = 120.0


class Judge:
    """Asks one question at a time; may be used by several threads at once.

    The key is OPENAI_API_KEY; a server of one's own (`base_url`) may do without.
    """

    def __init__(self, options: JudgeOptions) -> None:
        """
        Raises:
            ImportError: `openai` is missing.
            RequestError: OpenAI's own server is meant, but there is no key.
        """
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
        # For messages: without the user and password that it may hold.
        self._server = str(self._client.base_url.copy_with(userinfo=b""))
        self._limit = "max_tokens"

    def ask(self, system: str, user: str) -> str:
        """The reply to a user's message.

        Raises:
            RequestError: the server refuses the request; trying again would not help. A QuestionRefusedError where
                another question may fare better.
            JudgeUnreachableError: it gave no reply after all tries.
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
            except (openai.APIError, ValueError, RecursionError) as error:  # no connection, time out, or half a reply
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
        limit = self._limit  # other threads may change it meanwhile
        try:
            return self._client.chat.completions.create(**request, **{limit: self.options.max_tokens})
        except openai.BadRequestError as error:
            if limit == "max_completion_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._limit = limit = "max_completion_tokens"  # newer models know the limit by this name only
            return self._client.chat.completions.create(**request, **{limit: self.options.max_tokens})

    def _text_of(self, reply: Any) -> str:
        """The text of a reply; empty where it holds none.

        Raises:
            RequestError: it is no chat completion, as a page of some other server.
        """
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list):
            raise RequestError(
                f"{self._server} is no OpenAI-compatible server; --judge-base-url goes up to and with /v1"
            )
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
        """What went wrong, on one line, without the key, which some servers send back."""
        text = " ".join(str(error).split())
        return (text.replace(self._key, "***") if self._key else text)[:_LONGEST_CAUSE]


def _may_pass(error: Any) -> bool:
    if getattr(error, "code", None) == "insufficient_quota":
        return False
    return error.status_code >= 500 or error.status_code in _PASSING


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], parallel: int) -> Iterator[Result]:
    """`function` of every item, `parallel` at once, in the order of the items; an error ends it and drops the rest."""
    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def add_judge_arguments(parser: argparse.ArgumentParser, model: str, parallel: int) -> None:
    """--max-tokens of upstream, and what is beyond it."""
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest reply of the judge")
    parser.add_argument("--judge-model", default=model, help="name of the model at the server (default: %(default)s)")
    parser.add_argument("--judge-base-url", help="an OpenAI-compatible server, up to and with /v1 (default: OpenAI's)")
    parser.add_argument("--judge-retries", type=int, default=5, help="further tries when the server is busy or broken")
    parser.add_argument("--judge-parallel", type=int, default=parallel, help="requests at once (default: %(default)s)")


def judge_from(args: Any, temperature: float = 0.2, pause: float = 0.5) -> Judge:
    """The judge that the flags of `add_judge_arguments` describe."""
    return Judge(
        JudgeOptions(
            model=args.judge_model,
            base_url=args.judge_base_url,
            temperature=temperature,
            max_tokens=args.max_tokens,
            retries=max(0, args.judge_retries),
            pause=pause,
        )
    )
