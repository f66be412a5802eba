"""The letter of the option that a reply chooses, by rules alone."""

import re
from collections.abc import Mapping

_LEADING = re.compile(r"\(?([A-Z])\)?(?:[.:,)]|$)")
_STANDING_ALONE = re.compile(r"(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9])")


def extract_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The option's letter, or None where the reply does not tell.

    1. The reply begins with an offered letter and ends there, or goes on with one of `.` `:` `,` `)`.
    2. One offered letter, and no other, stands alone in it; an `A` in more than three words may be the article and
       does not count.
    3. The text of one option, and of no other, occurs in it as a word or words, whatever the case.

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
