"""Find the letter of the option that a reply chooses, by rules."""

import re
from collections.abc import Mapping

_LEADING = re.compile(r"\(?([A-Z])\)?(?:[.:,)]|$)")
_STANDING_ALONE = re.compile(r"(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9])")


def extract_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that a reply chooses, or None.

    1. The reply begins with an offered letter, followed by its end or one of `.` `:` `,` `)`.
    2. Exactly one offered letter occurs as a word; an `A` in more than three words may be the article and does not
       count.
    3. The text of exactly one option occurs as a word or words, in any case.

    Args:
        options: letter -> text.
    """
    reply = reply.strip()
    leading = _LEADING.match(reply)
    if leading is not None and leading.group(1) in options:
        return leading.group(1)
    letters = {letter for letter in _STANDING_ALONE.findall(reply) if letter in options}
    if len(letters) == 1 and not (letters == {"A"} and len(reply.split()) > 3):
        return letters.pop()
    named = [letter for letter, text in options.items() if _occurs(text, reply)]
    return named[0] if len(named) == 1 else None


def _occurs(text: str, reply: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])", reply, re.IGNORECASE) is not None
