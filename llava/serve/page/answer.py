"""How an answer comes into a chat of the demo: address, template, request, stream, log (contract: serve.md 7.2)."""

import asyncio
import base64
import io
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llava.chat import check_markers, without_markers
from llava.conversation import Conversation, SeparatorStyle
from llava.program import RequestError
from llava.serve.page.chat import AFTER_ERROR, ALL_OFF, ALL_ON, Buttons, Chat, Settings
from llava.serve.page.client import ModelClient, ModelDetails, ServerError
from llava.serve.page.figures import Stopwatch
from llava.serve.page.log import ChatLog
from llava.serve.page.template import begin_in_template, choose_template
from llava.serve.wire import OK, WireError, error_message
from llava.utils import server_error_msg

MAX_NEW_TOKENS = 1536
CURSOR = "\N{LEFT HALF BLOCK}"
PAUSE = 0.03  # seconds between two pieces on the screen

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a stream has brought so far.

    Attributes:
        text: the answer.
        error: message of a frame with an error code; ends the answer.
        usage: counts that the worker sent with its last frame.
        num_frames: frames received.
        stopped: whether the visitor ended it.
        watch: when the pieces came.
    """

    text: str = ""
    error: str | None = None
    usage: Any = None
    num_frames: int = 0
    stopped: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)

    def take(self, frame: dict[str, Any], prompt_length: int) -> None:
        """One frame; its text repeats the prompt."""
        self.num_frames += 1
        code = frame["error_code"]
        if code != OK:
            self.error = f"{error_message(frame)} (error_code: {code})"
            return
        text = frame["text"][prompt_length:].strip()
        self.watch.frame(has_grown=text != self.text)
        self.text = text
        self.usage = frame.get("usage", self.usage)


class Answerer:
    """Gets answers from workers and writes them into chats.

    Args:
        client: how controller and workers are reached.
        log: where chats are kept.
    """

    def __init__(self, client: ModelClient, log: ChatLog) -> None:
        self.client = client
        self.log = log

    async def http_bot(
        self, chat: Chat, model: str | None, settings: Settings, ip: str
    ) -> AsyncIterator[Buttons | None]:
        """Answer the last question of a chat; yields after every change, with the buttons as they then are.

        None: nothing is to be done. However this ends, the chat's answer has no block character left at its end.
        """
        messages = chat.conversation.messages
        if chat.conversation.skip_next or chat.is_running or not messages or messages[-1][1] is not None:
            yield None
            return
        chat.stop = asyncio.Event()
        is_complete = False
        try:
            _write(chat.conversation, CURSOR)
            yield ALL_OFF
            async with aclosing(self._answer(chat, model or "", settings, ip)) as changes:
                async for buttons in changes:
                    if buttons != ALL_OFF:  # nothing comes after this; the next question may
                        is_complete, chat.stop = True, None
                    yield buttons
        finally:
            if not is_complete:  # the visitor went away in the middle
                chat.stop = None
                _write(chat.conversation, (chat.conversation.messages[-1][1] or "").removesuffix(CURSOR))

    async def _answer(self, chat: Chat, model: str, settings: Settings, ip: str) -> AsyncIterator[Buttons]:
        started = time.time()
        outcome = Outcome()
        try:
            address = await self.client.worker_address(model) if model else ""
            if chat.is_first_exchange:
                details = await self.client.details(address) if address else ModelDetails()
                template = choose_template(model, details.conv_mode)
                chat.conversation = begin_in_template(template, chat.conversation.messages[-2][1])
            if not address:
                raise RequestError(f"no worker serves {model}" if model else "no model is chosen")
            conversation = chat.conversation
            request, hashes = await asyncio.to_thread(self._prepare, conversation, model, settings)
            async with aclosing(self._receive(address, request, outcome, chat.stop)) as pieces:
                async for _ in pieces:
                    _write(conversation, outcome.text + CURSOR)
                    yield ALL_OFF
        except (ServerError, WireError, RequestError) as error:
            logger.warning("no answer from %s: %s", model or "any model", error)
            yield _fail(chat, server_error_msg, str(error))
            return
        except Exception:  # whatever it is, the visitor can go on: without this all buttons would stay off
            logger.exception("an answer of %s failed", model or "no model")
            yield _fail(chat, server_error_msg, "the demo could not get this answer; its log says why")
            return
        if outcome.error is not None:
            yield _fail(chat, outcome.error)
            return
        if outcome.num_frames or outcome.stopped:
            buttons = _finish(chat, outcome)
        else:
            buttons = _fail(chat, server_error_msg, "the worker ended the connection without an answer")
        # Before the visitor can go on, which changes the conversation.
        await asyncio.to_thread(self.log.chat, model, conversation, started, time.time(), hashes, ip)
        yield buttons

    def _prepare(self, conversation: Conversation, model: str, settings: Settings) -> tuple[dict[str, Any], list[str]]:
        """The request for a worker, and the hashes of its pictures, which are stored.

        Raises:
            RequestError: pictures and markers do not match.
        """
        pictures = conversation.get_images(return_pil=True)
        hashes = [self.log.store_picture(picture) for picture in pictures]
        request = build_request(conversation, model, settings)
        check_markers(request["prompt"], len(pictures))
        logger.info("request: %s", {**request, "images": f"{len(pictures)} pictures: {hashes}"})
        request["images"] = [_encode(picture) for picture in pictures]
        return request, hashes

    async def _receive(
        self, address: str, request: dict[str, Any], outcome: Outcome, stop: asyncio.Event
    ) -> AsyncIterator[None]:
        """Fill `outcome` from the worker's frames until their end, an error, or `stop`; yields when there is news.

        Reading does not wait for the screen: a slow page must not slow the worker down, nor the times that are shown.

        Raises:
            ServerError, WireError: see `ModelClient.stream`.
        """
        news = asyncio.Event()
        reader = asyncio.ensure_future(self._read(address, request, outcome, news))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not reader.done() and not stop.is_set():
                told = asyncio.ensure_future(news.wait())
                await asyncio.wait({reader, stopped, told}, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
                if news.is_set():
                    news.clear()
                    yield
                    await asyncio.wait({reader, stopped}, timeout=PAUSE, return_when=asyncio.FIRST_COMPLETED)
            outcome.stopped = not reader.done()
        finally:
            stopped.cancel()
            reader.cancel()  # hangs up; does nothing to one that is done
            await asyncio.wait({reader})
        if not reader.cancelled():
            reader.result()

    async def _read(self, address: str, request: dict[str, Any], outcome: Outcome, news: asyncio.Event) -> None:
        prompt_length = len(request["prompt"])
        async with aclosing(self.client.stream(address, request)) as frames:
            async for frame in frames:
                outcome.take(frame, prompt_length)
                news.set()
                if outcome.error is not None:
                    return


def build_request(conversation: Conversation, model: str, settings: Settings) -> dict[str, Any]:
    """What the worker is asked (contract: serve.md 7.2, point 5), without the pictures.

    `details` asks for the counts under the reply and for reasons of failures; like `num_visual_tokens` it means nothing
    to an old worker.
    """
    ends_with_sep = conversation.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT)
    prompt = _with_open_answer(conversation).get_prompt()
    request = {
        "model": model,
        "prompt": prompt,
        "temperature": float(settings.temperature),
        "top_p": float(settings.top_p),
        "max_new_tokens": min(int(settings.max_new_tokens), MAX_NEW_TOKENS),
        "stop": conversation.sep if ends_with_sep else conversation.sep2,
        "details": True,
    }
    if settings.num_visual_tokens is not None:
        request["num_visual_tokens"] = settings.num_visual_tokens
    return request


def _with_open_answer(conversation: Conversation) -> Conversation:
    """A copy whose last message is the slot of the answer, whatever the screen shows in it."""
    opened = conversation.copy()
    opened.messages[-1][1] = None
    return opened


def _encode(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _write(conversation: Conversation, answer: str) -> None:
    conversation.messages[-1][1] = answer


def _fail(chat: Chat, message: str, reason: str = "") -> Buttons:
    """The answer is a message about why there is none."""
    _write(chat.conversation, message)
    if reason:
        chat.remarks[len(chat.conversation.messages) - 1] = reason[0].upper() + reason[1:] + "."
    return AFTER_ERROR


def _finish(chat: Chat, outcome: Outcome) -> Buttons:
    last = len(chat.conversation.messages) - 1
    _write(chat.conversation, without_markers(outcome.text))
    chat.figures[last] = outcome.watch.figures(outcome.usage, outcome.stopped)
    if not outcome.text and not outcome.stopped:
        chat.remarks[last] = "The model answered with nothing."
    return ALL_ON
