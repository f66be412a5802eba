"""What controller, workers and web server say to each other: frames, error codes, headers (contract: serve.md 3).

A stream is a sequence of JSON objects in ASCII, each followed by one zero byte. This module needs no optional package.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llava.utils import server_error_msg

if TYPE_CHECKING:
    import requests

OK = 0
WORKER_FAILED = 1  # any exception in the worker
NO_WORKER = 2  # the controller knows no worker for the model
WORKER_UNREACHABLE = 3  # the controller cannot reach the worker, or it fell silent

CLIENT_HEADERS = {"User-Agent": "LLaVA Client"}
SECRET_HEADER = "X-LLaVA-Secret"

DELIMITER = b"\0"
# A frame repeats the prompt; pictures are never in it. Far above any real frame, it bounds what a reader keeps.
MAX_FRAME_BYTES = 16 * 2**20


class WireError(ConnectionError):
    """A peer sent something that is no stream of frames."""


def frame(text: str, error_code: int = OK, **extra: Any) -> bytes:
    """One frame, ready to be sent.

    Args:
        text: for code 0 the prompt as received and all text generated so far; else a message for the user.
        error_code: one of the codes of this module.
        extra: optional fields (`usage`, `message`); old clients ignore them.
    """
    return json.dumps({"text": text, "error_code": error_code, **extra}).encode() + DELIMITER


def wants_details(params: Any) -> bool:
    """Whether a request knows the fields that upstream's wire does not have, and asks for them."""
    return isinstance(params, dict) and params.get("details") is True


def error_frame(error_code: int, message: str | None = None, with_details: bool = False) -> bytes:
    """The frame of a failure: the text that old clients know, and the reason for a person if there is one."""
    return frame(server_error_msg, error_code, **({"message": message} if message and with_details else {}))


def error_message(received: dict[str, Any]) -> str:
    """What to show a person for a frame with an error code: its reason if it gives one, else its text."""
    return str(received.get("message") or received.get("text") or server_error_msg)


class FrameReader:
    """Puts frames together from pieces that are cut anywhere."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._rest = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun and its end has not come yet."""
        return bool(self._rest)

    def feed_raw(self, piece: bytes) -> list[bytes]:
        """The frames that `piece` completes, without their zero bytes; empty ones are left out.

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
        """The frames that `piece` completes.

        Raises:
            WireError: a frame is too large, or no JSON object with a text and an error code.
        """
        return [parse_frame(one) for one in self.feed_raw(piece)]


def parse_frame(raw: bytes) -> dict[str, Any]:
    """One frame without its zero byte.

    Raises:
        WireError: no JSON object with a text and an error code.
    """
    try:
        received = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WireError("the peer sent a frame that is not JSON; is this the address of a LLaVA server?") from error
    if not isinstance(received, dict) or not isinstance(received.get("text"), str) or "error_code" not in received:
        raise WireError("the peer sent a frame without text and error_code; is this the address of a LLaVA server?")
    return received


def read_frames(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """All frames of a body that comes in pieces; an unfinished one at the end (no zero byte) is read too.

    Raises:
        WireError: see `FrameReader.feed`.
    """
    reader = FrameReader()
    for piece in pieces:
        yield from reader.feed(piece)
    if reader.unfinished:
        yield from reader.feed(DELIMITER)


def direct_session() -> "requests.Session":
    """For requests to controllers and workers: no proxy of the environment sees secrets, prompts and pictures."""
    import requests

    session = requests.Session()
    session.trust_env = False
    return session


def stream_request(
    address: str, params: dict[str, Any], *, connect_timeout: float = 5.0, read_timeout: float = 60.0
) -> Iterator[dict[str, Any]]:
    """Ask a worker (or a controller) for a reply and yield its frames as they come; closing the iterator hangs up.

    Args:
        address: base URL, as `/get_worker_address` gives it.
        params: the request (contract: serve.md 2.1).
        connect_timeout: seconds to wait for a connection.
        read_timeout: seconds without a byte.

    Raises:
        requests.RequestException: not reachable, silent, broken off, or a status other than 200.
        WireError: the answer is no stream of frames.
    """
    import requests

    url = f"{address.rstrip('/')}/worker_generate_stream"
    options = {"stream": True, "timeout": (connect_timeout, read_timeout), "allow_redirects": False}
    with (
        direct_session() as session,
        session.post(url, headers=CLIENT_HEADERS, json=params, **options) as response,
    ):
        if response.status_code != 200:
            raise requests.HTTPError(f"{address} answered with status {response.status_code}", response=response)
        # chunk_size=None: a piece is passed on when it has come, not when a buffer is full.
        yield from read_frames(response.iter_content(chunk_size=None))
