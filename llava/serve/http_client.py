"""HTTP requests between controller, workers and web server, with the same precautions everywhere.

Redirects are not followed (they could lead anywhere). Proxies of the environment are not used (they would see secrets,
prompts and images). Compressed answers are not requested (a small one may unpack to a huge one). Needs the `serve`
extra when a client is made, not at import.
"""

import logging
import ssl
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from llava.extras import require_extra
from llava.serve import wire

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 5.0  # seconds


@cache
def _tls_context() -> ssl.SSLContext:
    """The trusted certificates of this machine; reading them takes longer than a request on the loopback."""
    return ssl.create_default_context()


def client_options(timeout: float, connect_timeout: float = CONNECT_TIMEOUT) -> dict[str, Any]:
    """Options of every `httpx.Client` and `httpx.AsyncClient` here.

    Raises:
        ImportError: httpx is not installed.
    """
    require_extra("httpx", "serve")
    import httpx

    return {
        "follow_redirects": False,
        "trust_env": False,
        "headers": {**wire.CLIENT_HEADERS, "Accept-Encoding": "identity"},
        "verify": _tls_context(),
        "timeout": httpx.Timeout(timeout, connect=connect_timeout),
        # A kept connection may lead to a server that has been restarted since.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=0),
    }


def log_failures_only() -> None:
    """Stop httpx from logging every request; called when a server starts."""
    logging.getLogger("httpx").setLevel(logging.WARNING)


async def read_limited(response: "httpx.Response", max_bytes: int) -> bytes:
    """The whole body of a streamed response.

    Raises:
        WireError: it is larger than allowed.
    """
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise wire.WireError(f"the answer is larger than {max_bytes} bytes")
    return bytes(body)


def post(
    url: str, body: Any = None, *, headers: dict[str, str] | None = None, timeout: float = CONNECT_TIMEOUT
) -> "httpx.Response":
    """POST a JSON body; blocks until the answer is complete.

    Raises:
        WireError: the server cannot be reached, or does not answer in time.
    """
    options = client_options(timeout, timeout)
    import httpx

    try:
        with httpx.Client(**options) as client:
            return client.post(url, json=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise wire.WireError(f"{url} cannot be reached: {type(error).__name__}: {error}") from error


def stream_request(
    address: str, params: dict[str, Any], *, connect_timeout: float = CONNECT_TIMEOUT, read_timeout: float = 60.0
) -> Iterator[dict[str, Any]]:
    """Ask a worker (or a controller) for a reply and yield its frames as they arrive; closing the iterator hangs up.

    Args:
        address: base URL, as `/get_worker_address` gives it.
        params: the request: `prompt`, `images`, `temperature`, `top_p`, `max_new_tokens`, `stop`, `model`.
        connect_timeout: seconds to wait for a connection.
        read_timeout: seconds without a byte.

    Raises:
        WireError: not reachable, silent, broken off, a status other than 200, or something else than frames.
    """
    options = client_options(read_timeout, connect_timeout)
    import httpx

    url = f"{address.rstrip('/')}/worker_generate_stream"
    try:
        with httpx.Client(**options) as client, client.stream("POST", url, json=params) as response:
            if response.status_code != 200:
                raise wire.WireError(f"{address} answered with status {response.status_code}")
            yield from wire.read_frames(response.iter_raw())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise wire.WireError(f"{address}: {type(error).__name__}: {error}") from error
