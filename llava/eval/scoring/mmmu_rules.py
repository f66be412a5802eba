"""MMMU's rules for reading replies and judging them (https://github.com/MMMU-Benchmark/MMMU, `eval`).

One difference: where no option can be found in a reply, the benchmark's own tool draws one at random; here there is no
answer. And a reply that begins with a letter and `.`, `:` or `)`, which those rules leave to chance, gives that letter.
"""

import re
from collections.abc import Mapping, Sequence

_EDGES = ",.!?;:'"
_BEGINNING = re.compile(r"\(?([A-Z])[.:)]")
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_WITH_COMMAS = r"-? \b [0-9]{1,3} (?: , [0-9]{3} )+ \b"
_SCIENTIFIC = r"-? [0-9]+ (?: \. [0-9]+ )? e [+-]? [0-9]+"
_PLAIN = r"-? (?: [0-9]* \. [0-9]+ | [0-9]+ \b ) (?! e [+-]? [0-9] ) (?! [,0-9] )"
_NUMBERS = tuple(re.compile(form, re.VERBOSE | re.IGNORECASE) for form in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN))

Value = str | float


def parse_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The option's letter, or None.

    The last `(X)`; else the last X between spaces; else, in a reply of more than five words, the option whose text
    occurs last.

    Args:
        options: letter -> text.
    """
    for sign in _EDGES:
        reply = reply.strip(sign)
    text = f" {reply} "
    lower = text.lower()
    places = {letter: text.rfind(f"({letter})") for letter in options}
    if max(places.values(), default=-1) < 0:
        places = {letter: text.rfind(f" {letter} ") for letter in options}
    if max(places.values(), default=-1) < 0:
        beginning = _BEGINNING.match(reply.strip())
        if beginning is not None and beginning.group(1) in options:
            return beginning.group(1)
        if len(text.split()) > 5:
            places = {letter: lower.rfind(option.lower()) for letter, option in options.items()}
    found = {letter: place for letter, place in places.items() if place >= 0}
    return max(found, key=found.__getitem__) if found else None


def parse_open(reply: str) -> list[Value]:
    """Everything in a reply to an open question that may be its answer: pieces of text and numbers, normalised.

    Pieces are what follows a cue word (`is`, `answer`, `=` in the last sentence, ...), or the whole reply.
    """
    pieces = _pieces(reply)
    numbers = [number for piece in pieces for pattern in _NUMBERS for number in pattern.findall(piece)]
    return list(dict.fromkeys(value for text in [*pieces, *numbers] for value in normalise(text)))


def _pieces(reply: str) -> list[str]:
    reply = reply.strip().strip(".").lower()
    # Sentences are parted in front of capital letters, of which none is left: only lines part the reply (*compat*).
    lines = reply.split("\n")
    pieces = []
    for number, line in enumerate(lines, start=1):
        cues = [*_CUES, "="] if number == len(lines) else list(_CUES)
        tails = [tail for cue in cues if cue in line and (tail := line.split(cue)[-1].strip())]
        if tails and (shortest := min(tails, key=len)) not in [*_EDGES]:
            pieces.append(shortest)
    return pieces or [reply]


def normalise(text: str) -> list[Value]:
    """A number rounded to two decimals, or text in lower case; a single letter with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_is_right(answers: Sequence[str], parsed: Sequence[Value]) -> bool:
    """Whether a number equals an answer, or an answer's text occurs in a piece of text."""
    wanted = [value for answer in answers for value in normalise(answer)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in parsed)
