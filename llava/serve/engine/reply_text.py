"""The text of a growing reply: incremental decoding and stop strings."""

from collections.abc import Sequence
from typing import Any

CJK = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
INCOMPLETE = "�"  # decoded from the first bytes of a character


class ReplyText:
    """The text of one reply.

    Args:
        tokenizer: of transformers.
        stops: strings that end the reply and are cut off.

    Attributes:
        ids: its tokens, without the end token.
        text: decoded so far, without the stop string; may end with the beginning of one.
        is_stopped: a stop string was found.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self.ids: list[int] = []
        self._context = 0  # where decoding begins: tokens decode differently at the start of a text
        self._read = 0  # tokens whose text is in `text`
        self.text = ""
        self.is_stopped = False

    def add(self, token: int) -> None:
        """Append one token."""
        self.ids.append(token)
        known = self._decode(self.ids[self._context : self._read])
        text = self._decode(self.ids[self._context :])
        if len(text) > len(known) and not text.endswith(INCOMPLETE):
            self._append(text[len(known) :])
            self._context, self._read = self._read, len(self.ids)

    def finish(self) -> None:
        """Flush the bytes of an incomplete character; no token follows."""
        if not self.is_stopped:
            known = self._decode(self.ids[self._context : self._read])
            self._append(self._decode(self.ids[self._context :])[len(known) :])
            self._context, self._read = self._read, len(self.ids)

    @property
    def safe_length(self) -> int:
        """Characters of `text` that are final: all but those that may begin a stop string."""
        if self.is_stopped:
            return len(self.text)
        longest = max((_overlap(self.text, stop) for stop in self._stops), default=0)
        return len(self.text) - longest

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _append(self, piece: str) -> None:
        longest = max((len(stop) for stop in self._stops), default=0)
        start = max(0, len(self.text) - longest)
        self.text += piece
        found = [place for stop in self._stops if (place := self.text.find(stop, start)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.is_stopped = True


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def whole_words(text: str) -> str:
    """The part of a growing text that upstream streams: up to the last blank, or all of it at the end of a line."""
    if text.endswith("\n") or (text and _is_cjk(text[-1])):
        return text
    return text[: max(text.rfind(" "), text.rfind("\n")) + 1]


def _is_cjk(character: str) -> bool:
    """Whether a character is a CJK ideograph; such scripts put no blanks between words."""
    return any(first <= ord(character) <= last for first, last in CJK)
