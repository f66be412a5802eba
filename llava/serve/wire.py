"""The messages between controller, workers and web server: stream frames, error codes, headers.

A stream is a sequence of ASCII JSON objects, each followed by one zero byte. Frames are upstream's; the fields
`message` and `usage` are ours, and only sent to clients that ask for them with `"details": true`.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from llava.utils import server_error_msg

OK = 0
WORKER_FAILED = 1  # any exception in the worker
NO_WORKER = 2  # the controller has no worker for the model
WORKER_UNREACHABLE = 3  # the controller cannot reach the worker, or the worker went silent

CLIENT_HEADERS = {"User-Agent": "LLaVA Client"}
SECRET_HEADER = "X-LLaVA-Secret"

DELIMITER = b"\0"
# A frame repeats the prompt, but never its images. Far above any real frame; bounds what a reader buffers.
MAX_FRAME_BYTES = 16 * 2**20


class WireError(ConnectionError):
    """A peer cannot be reached, broke off, or sent something else than frames."""


def frame(text: str, error_code: int = OK, **extra: Any) -> bytes:
    """One encoded frame.

    Args:
        text: for code 0 the prompt as received, followed by all text generated so far; otherwise a message for the
            user.
        error_code: one of the codes of this module.
        extra: optional fields (`usage`, `message`), which old clients ignore.
    """
    return json.dumps({"text": text, "error_code": error_code, **extra}).encode() + DELIMITER


def wants_details(params: Any) -> bool:
    """Whether a request asks for the fields that upstream's frames do not have."""
    return isinstance(params, dict) and params.get("details") is True


def error_frame(error_code: int, message: str | None = None, with_details: bool = False) -> bytes:
    """The frame of a failure: upstream's fixed text, plus the reason for clients that ask for details."""
    return frame(server_error_msg, error_code, **({"message": message} if message and with_details else {}))


def error_message(received: dict[str, Any]) -> str:
    """The text to show for a frame with an error code: its reason if it has one, else its text."""
    return str(received.get("message") or received.get("text") or server_error_msg)


class FrameReader:
    """Assembles frames from pieces that may be cut anywhere.

    Args:
        max_frame_bytes: larger frames raise `WireError`.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._rest = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun without having ended."""
        return bool(self._rest)

    def feed_raw(self, piece: bytes) -> list[bytes]:
        """The frames that `piece` completes, without their zero bytes; empty ones are skipped.

        Raises:
            WireError: a frame is larger than the limit.
        """
        *whole, rest = piece.split(DELIMITER)
        if whole:
            whole[0] = bytes(self._rest) + whole[0]
            self._rest = bytearray(rest)
        else:
            self._rest += rest
        if max(len(self._rest), *map(len, whole), 0) > self.max_frame_bytes:
            raise WireError(f"a frame is larger than {self.max_frame_bytes} bytes: the peer is no LLaVA server")
        return [one for one in whole if one]

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """The parsed frames that `piece` completes.

        Raises:
            WireError: a frame is too large, or is not a JSON object with a text and an error code.
        """
        return [parse_frame(one) for one in self.feed_raw(piece)]

    def finish(self) -> list[dict[str, Any]]:
        """The last frame of a body that lacks its final zero byte.

        Raises:
            WireError: see `feed`.
        """
        return self.feed(DELIMITER)


def parse_frame(raw: bytes) -> dict[str, Any]:
    """Parse one frame without its zero byte.

    Raises:
        WireError: not a JSON object with a text and an error code.
    """
    try:
        received = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WireError("the peer sent a frame that is not JSON; is this the address of a LLaVA server?") from error
    if not isinstance(received, dict) or not isinstance(received.get("text"), str) or "error_code" not in received:
        raise WireError("the peer sent a frame without text and error_code; is this the address of a LLaVA server?")
    return received


def read_frames(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """All frames of a body that arrives in pieces.

    Raises:
        WireError: see `FrameReader.feed`.
    """
    reader = FrameReader()
    for piece in pieces:
        yield from reader.feed(piece)
    yield from reader.finish()
