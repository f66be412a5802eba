"""A visitor's chat in the demo, and what a question does to it (contract: serve.md 7.2).

No web library is used here, so that every rule can be tested by itself.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from llava import conversation as conversation_module
from llava.chat import without_markers
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, images_of
from llava.program import RequestError
from llava.serve.page.figures import ReplyFigures

MAX_TEXT = 1536  # characters
MAX_TEXT_WITH_IMAGE = 1200
MAX_PICTURES = 8  # per chat: a request has all of them, and workers take no more


class Buttons(NamedTuple):
    """Which of the buttons can be pressed."""

    votes: bool
    regenerate: bool
    clear: bool


ALL_OFF = Buttons(False, False, False)
ALL_ON = Buttons(True, True, True)
AFTER_ERROR = Buttons(False, True, True)


@dataclass(frozen=True)
class Settings:
    """How a model is to answer.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is sampled from.
        max_new_tokens: length of the answer.
        num_visual_tokens: per picture, for elastic connectors; None is the model's own number.
    """

    temperature: float = 0.2
    top_p: float = 0.7
    max_new_tokens: int = 512
    num_visual_tokens: int | None = None


def default_conversation() -> Conversation:
    """A copy of the template that `llava.conversation` has as its default at this time."""
    return conversation_module.default_conversation.copy()


@dataclass
class Chat:
    """All that belongs to one visitor's chat.

    Attributes:
        conversation: the messages, in the template of the model.
        previews: files that show the pictures of a user turn, by the turn's index in `conversation.messages`.
        figures: what an answer cost, by its index.
        remarks: a line of the demo under an answer (why there is none), by its index.
        stop: set to end the running answer; None while none is running.
        is_abandoned: the visitor cleared this chat; what still comes in is not shown.
    """

    conversation: Conversation = field(default_factory=default_conversation)
    previews: dict[int, list[str]] = field(default_factory=dict)
    figures: dict[int, ReplyFigures] = field(default_factory=dict)
    remarks: dict[int, str] = field(default_factory=dict)
    stop: asyncio.Event | None = None
    is_abandoned: bool = False

    @property
    def is_running(self) -> bool:
        """Whether an answer is coming in."""
        return self.stop is not None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is coming in, or will as soon as there is a place for it."""
        messages = self.conversation.messages
        return self.is_running or (bool(messages) and messages[-1][1] is None)

    @property
    def is_first_exchange(self) -> bool:
        """Whether there is one question so far, so that the template can still be chosen."""
        return len(self.conversation.messages) == self.conversation.offset + 2

    def end_answer(self) -> None:
        """Stop the running answer, if there is one; what has come of it stays."""
        if self.stop is not None:
            self.stop.set()

    def give_up(self, reason: str) -> None:
        """Close the open answer with nothing but a remark."""
        self.conversation.messages[-1][1] = ""
        self.remarks[len(self.conversation.messages) - 1] = reason

    def abandon(self) -> None:
        """The visitor goes on with another chat; a running answer is stopped."""
        self.is_abandoned = True
        self.end_answer()

    def add_text(
        self,
        text: str,
        pictures: Sequence[Image.Image] = (),
        previews: Sequence[str] = (),
        mode: str = "Default",
        keep: bool = False,
    ) -> None:
        """A question with its pictures; without both it is none, and the answer is skipped.

        Pictures begin a new conversation unless `keep`. A typed `<image>` is taken out, since markers and pictures
        must match (S-8).

        Args:
            pictures: in the order of their markers.
            previews: files that show them.
            mode: how the pictures are prepared (`Conversation.process_image`).
            keep: go on with the conversation although there are pictures.

        Raises:
            RequestError: too many pictures, or an answer is still coming in.
        """
        self.check_free()
        total = len(pictures) + (self._count_pictures() if keep else 0)
        if total > MAX_PICTURES:
            raise RequestError(f"{total} pictures are too many for one chat; at most {MAX_PICTURES} go in")
        text = without_markers(text)
        if not text.strip() and not pictures:
            self.conversation.skip_next = True
            return
        content: Any = text[:MAX_TEXT]
        if pictures:
            text = text[:MAX_TEXT_WITH_IMAGE] + f"\n{DEFAULT_IMAGE_TOKEN}" * len(pictures)
            content = (text, pictures[0] if len(pictures) == 1 else list(pictures), mode)
            if not keep:
                self._begin_anew()
            self.previews[len(self.conversation.messages)] = list(previews)
        self.conversation.append_message(self.conversation.roles[0], content)
        self.conversation.append_message(self.conversation.roles[1], None)
        self.conversation.skip_next = False

    def check_free(self) -> None:
        """
        Raises:
            RequestError: an answer is still coming in.
        """
        if self.is_busy:
            raise RequestError("the answer is still coming; wait for its end, or press Stop")

    def _count_pictures(self) -> int:
        return sum(len(images_of(content)) for _, content in self.conversation.messages)

    def _begin_anew(self) -> None:
        self.conversation = default_conversation()
        self.previews, self.figures, self.remarks = {}, {}, {}

    def regenerate(self, mode: str) -> None:
        """Open the last answer again; the pictures of its question are now prepared in `mode`."""
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
