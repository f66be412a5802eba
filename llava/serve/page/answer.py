"""An answer in a chat of the demo: worker address, template, request, stream, log."""

import asyncio
import base64
import io
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llava.chat import append_question, check_markers, infer_template, new_conversation, stop_string, without_markers
from llava.conversation import Conversation
from llava.program import RequestError
from llava.serve.page.chat import AFTER_ERROR, ALL_OFF, ALL_ON, Buttons, Chat, Settings, Stopwatch
from llava.serve.page.client import ModelClient, ModelDetails, ServerError
from llava.serve.page.log import ChatLog
from llava.serve.wire import OK, WireError, error_message
from llava.utils import server_error_msg

MAX_NEW_TOKENS = 1536
CURSOR = "\N{LEFT HALF BLOCK}"
PAUSE = 0.03  # seconds between two updates of the screen

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What has been received of a stream.

    Attributes:
        text: the answer.
        error: message of a frame with an error code; ends the answer.
        usage: counts in the worker's last frame.
        num_frames: frames received.
        stopped: whether the visitor stopped it.
        watch: arrival times.
    """

    text: str = ""
    error: str | None = None
    usage: Any = None
    num_frames: int = 0
    stopped: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)

    def take(self, frame: dict[str, Any], prompt_length: int) -> None:
        """Take one frame, whose text repeats the prompt."""
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
        client: of controller and workers.
        log: records chats.
    """

    def __init__(self, client: ModelClient, log: ChatLog) -> None:
        self.client = client
        self.log = log

    async def http_bot(
        self, chat: Chat, model: str | None, settings: Settings, ip: str
    ) -> AsyncIterator[Buttons | None]:
        """Answer the last question of a chat; yields the state of the buttons after every change.

        Yields None if there is nothing to do. In every case, the answer loses its cursor in the end.
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
                    if buttons != ALL_OFF:  # the last change; the next question may follow
                        is_complete, chat.stop = True, None
                    yield buttons
        finally:
            if not is_complete:  # the visitor left
                chat.stop = None
                _write(chat.conversation, (chat.conversation.messages[-1][1] or "").removesuffix(CURSOR))

    async def _answer(self, chat: Chat, model: str, settings: Settings, ip: str) -> AsyncIterator[Buttons]:
        started = time.time()
        outcome = Outcome()
        try:
            address = await self.client.worker_address(model) if model else ""
            if chat.is_first_exchange:
                details = await self.client.details(address) if address else ModelDetails()
                question = chat.conversation.messages[-2][1]
                chat.conversation = new_conversation(infer_template(model, details))
                append_question(chat.conversation, question)
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
        except Exception:  # otherwise all buttons would stay disabled
            logger.exception("an answer of %s failed", model or "no model")
            yield _fail(chat, server_error_msg, "the demo could not get this answer; see its log")
            return
        if outcome.error is not None:
            yield _fail(chat, outcome.error)
            return
        if outcome.num_frames or outcome.stopped:
            buttons = _finish(chat, outcome)
        else:
            buttons = _fail(chat, server_error_msg, "the worker ended the connection without an answer")
        # Before the visitor can change the conversation.
        await asyncio.to_thread(self.log.chat, model, conversation, started, time.time(), hashes, ip)
        yield buttons

    def _prepare(self, conversation: Conversation, model: str, settings: Settings) -> tuple[dict[str, Any], list[str]]:
        """The request for a worker, and the hashes of its images; the images are stored.

        Raises:
            RequestError: images and markers do not match.
        """
        images = conversation.get_images(return_pil=True)
        hashes = [self.log.store_image(image) for image in images]
        request = build_request(conversation, model, settings)
        check_markers(request["prompt"], len(images))
        logger.info("request: %s", {**request, "images": f"{len(images)} images: {hashes}"})
        request["images"] = [_encode(image) for image in images]
        return request, hashes

    async def _receive(
        self, address: str, request: dict[str, Any], outcome: Outcome, stop: asyncio.Event
    ) -> AsyncIterator[None]:
        """Fill `outcome` from the worker's frames until their end, an error, or `stop`; yields after changes.

        Reading does not wait for the screen: a slow page must not slow down the worker or distort measured times.

        Raises:
            ServerError, WireError: see `ModelClient.stream`.
        """
        news = asyncio.Event()
        reader = asyncio.ensure_future(self._read(address, request, outcome, news))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not reader.done() and not stop.is_set():
                changed = asyncio.ensure_future(news.wait())
                await asyncio.wait({reader, stopped, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if news.is_set():
                    news.clear()
                    yield
                    await asyncio.wait({reader, stopped}, timeout=PAUSE, return_when=asyncio.FIRST_COMPLETED)
            outcome.stopped = not reader.done()
        finally:
            stopped.cancel()
            reader.cancel()  # hangs up, unless it is done
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
    """The request for a worker, without its images.

    `details` requests token counts and the reasons of failures; old workers ignore it, as they do `num_visual_tokens`.
    """
    prompt = _with_open_answer(conversation).get_prompt()
    request = {
        "model": model,
        "prompt": prompt,
        "temperature": float(settings.temperature),
        "top_p": float(settings.top_p),
        "max_new_tokens": min(int(settings.max_new_tokens), MAX_NEW_TOKENS),
        "stop": stop_string(conversation),
        "details": True,
    }
    if settings.num_visual_tokens is not None:
        request["num_visual_tokens"] = settings.num_visual_tokens
    return request


def _with_open_answer(conversation: Conversation) -> Conversation:
    """A copy whose last message is open, whatever the screen shows in it."""
    opened = conversation.copy()
    opened.messages[-1][1] = None
    return opened


def _encode(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _write(conversation: Conversation, answer: str) -> None:
    conversation.messages[-1][1] = answer


def _fail(chat: Chat, message: str, reason: str = "") -> Buttons:
    """Replace the answer by an error message, with the reason as a remark."""
    _write(chat.conversation, message)
    if reason:
        chat.remarks[len(chat.conversation.messages) - 1] = reason[0].upper() + reason[1:] + "."
    return AFTER_ERROR


def _finish(chat: Chat, outcome: Outcome) -> Buttons:
    last = len(chat.conversation.messages) - 1
    _write(chat.conversation, without_markers(outcome.text))
    chat.figures[last] = outcome.watch.figures(outcome.usage, outcome.stopped)
    if not outcome.text and not outcome.stopped:
        chat.remarks[last] = "The model returned an empty answer."
    return ALL_ON
