"""Starting a server: its port is taken first, so that nothing is announced which cannot be reached."""

import errno
import socket
from contextlib import suppress
from typing import Any

from llava.extras import require_extra
from llava.program import RequestError


def require_serving() -> None:
    """Raise unless the packages of the `serve` extra are there.

    Raises:
        ImportError: one is missing; says what to install.
    """
    for module in ("fastapi", "uvicorn", "httpx", "prometheus_client"):
        require_extra(module, "serve")


def run_server(app: Any, host: str, port: int) -> None:
    """Serve an ASGI application until it is interrupted.

    Raises:
        RequestError: the port cannot be used.
    """
    import uvicorn

    sockets = listen(host, port)
    config = uvicorn.Config(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=5)
    try:
        with suppress(KeyboardInterrupt):  # raised again by uvicorn after it has shut down
            uvicorn.Server(config).run(sockets=sockets)
    finally:
        for one in sockets:
            one.close()


def check_port(host: str, port: int) -> None:
    """See that a port is free, for programs that have much to do before they serve.

    Raises:
        RequestError: see `listen`.
    """
    for one in listen(host, port):
        one.close()


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that accept connections on a port of this machine; `localhost` has one for each kind of address.

    Raises:
        RequestError: another program has the port, or the host is not of this machine.
    """
    if not 0 <= port <= 65535:  # some systems count on from 0 instead of refusing
        raise RequestError(f"--port {port} cannot be used: ports are 0 to 65535; choose another")
    sockets: list[socket.socket] = []
    unusable: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listen_on(family, address))
            except OSError as error:
                # Many containers know the name of the IPv6 loopback without having one.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unusable = error
        if not sockets:
            raise OSError(f"no address of this machine ({unusable})")
    except OSError as error:
        for one in sockets:
            one.close()
        raise RequestError(f"--host {host} --port {port} cannot be used: {error}; choose another") from error
    return sockets


def _listen_on(family: int, address: Any) -> socket.socket:
    # With the protocol named, asyncio sends small pieces at once (TCP_NODELAY); without, each token waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener
