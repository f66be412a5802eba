"""The state of a visitor's chat in the demo: its rules, and the measurements of its replies. No web library."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from llava import conversation as conversation_module
from llava.chat import append_question, without_markers
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, images_of
from llava.program import RequestError

MAX_TEXT = 1536  # characters
MAX_TEXT_WITH_IMAGE = 1200
MAX_IMAGES = 8  # per chat: a request contains all of them, and workers accept no more
# The rate of a shorter reply means nothing: its pieces may have arrived in one packet.
FEWEST_TOKENS = 4
SHORTEST = 0.02  # seconds


class Buttons(NamedTuple):
    """Which buttons are enabled."""

    votes: bool
    regenerate: bool
    clear: bool


ALL_OFF = Buttons(False, False, False)
ALL_ON = Buttons(True, True, True)
AFTER_ERROR = Buttons(False, True, True)


@dataclass(frozen=True)
class Settings:
    """Settings of an answer.

    Attributes:
        temperature: 0 chooses the most likely token.
        top_p: probability mass to sample from.
        max_new_tokens: longest answer.
        num_visual_tokens: per image, for elastic connectors; None: the model's own number.
    """

    temperature: float = 0.2
    top_p: float = 0.7
    max_new_tokens: int = 512
    num_visual_tokens: int | None = None


def default_conversation() -> Conversation:
    """A copy of the current default template of `llava.conversation`."""
    return conversation_module.default_conversation.copy()


@dataclass(frozen=True)
class ReplyFigures:
    """Measurements of one reply; None: unknown (old workers report no counts).

    Attributes:
        visual_tokens: positions of the prompt that images take.
        completion_tokens: length of the reply.
        first_token: seconds from the request to the first piece of text.
        rate: tokens per second after the first one.
        stopped: whether the visitor stopped the reply.
    """

    visual_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    rate: float | None = None
    stopped: bool = False

    def caption(self) -> str:
        """Everything that is known, in one line."""
        parts = []
        if self.visual_tokens is not None:
            parts.append(_count(self.visual_tokens, "visual token"))
        if self.completion_tokens is not None:
            parts.append(_count(self.completion_tokens, "token"))
        if self.first_token is not None:
            parts.append(f"first after {_seconds(self.first_token)}")
        if self.rate is not None:
            parts.append(f"{self.rate:.1f} tokens/s")
        if self.stopped:
            parts.append("stopped")
        return " · ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _seconds(time_passed: float) -> str:
    return f"{time_passed * 1000:.0f} ms" if time_passed < 1 else f"{time_passed:.1f} s"


class Stopwatch:
    """Measures the arrival times of one reply.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._last = self._start
        self._pieces = 0

    def frame(self, has_grown: bool) -> None:
        """Record a frame; the first one with text begins the reply."""
        self._last = self._clock()
        self._pieces += has_grown
        if self._first is None and has_grown:
            self._first = self._last

    def figures(self, usage: Any, stopped: bool) -> ReplyFigures:
        """The result; counts in the worker's last frame take precedence over those observed here."""
        usage = usage if isinstance(usage, dict) else {}
        if self._first is None:
            return ReplyFigures(visual_tokens=_number(usage, "visual_tokens"), stopped=stopped)
        tokens = _number(usage, "completion_tokens") or self._pieces
        first = _number(usage, "time_to_first_token")
        spent = self._last - self._first
        return ReplyFigures(
            visual_tokens=_number(usage, "visual_tokens"),
            completion_tokens=tokens,
            first_token=self._first - self._start if first is None else first,
            rate=(tokens - 1) / spent if tokens >= FEWEST_TOKENS and spent >= SHORTEST else None,
            stopped=stopped,
        )


def _number(usage: dict[str, Any], key: str) -> Any:
    value = usage.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass
class Chat:
    """One visitor's chat.

    Attributes:
        conversation: the messages, in the template of the model.
        previews: preview files of the images of a user turn, by the turn's index in `conversation.messages`.
        figures: measurements of an answer, by its index.
        remarks: a line under an answer (such as the reason of a failure), by its index.
        stop: set to end the running answer; None while none is running.
        is_abandoned: the visitor cleared this chat; what still arrives is not shown.
    """

    conversation: Conversation = field(default_factory=default_conversation)
    previews: dict[int, list[str]] = field(default_factory=dict)
    figures: dict[int, ReplyFigures] = field(default_factory=dict)
    remarks: dict[int, str] = field(default_factory=dict)
    stop: asyncio.Event | None = None
    is_abandoned: bool = False

    @property
    def is_running(self) -> bool:
        """Whether an answer is being received."""
        return self.stop is not None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being received, or waits for its turn."""
        messages = self.conversation.messages
        return self.is_running or (bool(messages) and messages[-1][1] is None)

    @property
    def is_first_exchange(self) -> bool:
        """Whether there is only one question so far, so that the template can still be chosen."""
        return len(self.conversation.messages) == self.conversation.offset + 2

    def end_answer(self) -> None:
        """Stop the running answer, if there is one; its text so far is kept."""
        if self.stop is not None:
            self.stop.set()

    def give_up(self, reason: str) -> None:
        """Close the open answer with a remark only."""
        self.conversation.messages[-1][1] = ""
        self.remarks[len(self.conversation.messages) - 1] = reason

    def abandon(self) -> None:
        """Mark the chat as cleared; a running answer is stopped."""
        self.is_abandoned = True
        self.end_answer()

    def add_text(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        previews: Sequence[str] = (),
        mode: str = "Default",
        keep: bool = False,
    ) -> None:
        """Append a question with its images; without text and images, the answer is skipped.

        Images start a new conversation unless `keep`. A typed `<image>` is removed, as markers and images must match.

        Args:
            text: the question, cut to `MAX_TEXT` characters.
            images: in the order of their markers.
            previews: their preview files.
            mode: preprocessing of the images (`Conversation.process_image`).
            keep: continue the conversation although there are images.

        Raises:
            RequestError: too many images, or an answer is still being received.
        """
        self.check_free()
        total = len(images) + (self._count_images() if keep else 0)
        if total > MAX_IMAGES:
            raise RequestError(f"{total} images are too many for one chat; at most {MAX_IMAGES} are allowed")
        text = without_markers(text)
        if not text.strip() and not images:
            self.conversation.skip_next = True
            return
        content: Any = text[:MAX_TEXT]
        if images:
            text = text[:MAX_TEXT_WITH_IMAGE] + f"\n{DEFAULT_IMAGE_TOKEN}" * len(images)
            content = (text, images[0] if len(images) == 1 else list(images), mode)
            if not keep:
                self._restart()
            self.previews[len(self.conversation.messages)] = list(previews)
        append_question(self.conversation, content)
        self.conversation.skip_next = False

    def check_free(self) -> None:
        """Check that a question can be asked.

        Raises:
            RequestError: an answer is still being received.
        """
        if self.is_busy:
            raise RequestError("the answer is still coming; wait for its end, or press Stop")

    def _count_images(self) -> int:
        return sum(len(images_of(content)) for _, content in self.conversation.messages)

    def _restart(self) -> None:
        self.conversation = default_conversation()
        self.previews, self.figures, self.remarks = {}, {}, {}

    def regenerate(self, mode: str) -> None:
        """Reopen the last answer; the images of its question are now preprocessed in `mode`."""
        messages = self.conversation.messages
        if self.is_busy:  # a second click changes nothing
            return
        if len(messages) < 2:
            self.conversation.skip_next = True
            return
        last = len(messages) - 1
        messages[last][1] = None
        self.figures.pop(last, None)
        self.remarks.pop(last, None)
        question = messages[last - 1][1]
        if isinstance(question, tuple):
            messages[last - 1][1] = (*question[:2], mode)
        self.conversation.skip_next = False
