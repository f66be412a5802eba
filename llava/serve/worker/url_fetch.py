"""Images at web addresses that clients name: fetched only from hosts that the operator allows.

A host name is resolved once, and the connection goes to that address, so that it cannot change between the check and
the connection. Every redirect is checked again. Private, loopback and other addresses outside of the public internet
are refused even for allowed names.
"""

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3

from llava.image_source import CHUNK_BYTES
from llava.program import RequestError

MAX_REDIRECTS = 3
READ_TIMEOUT, TOTAL_TIMEOUT = 5.0, 20.0  # seconds: without a byte; for everything
FETCHES = 8  # at once
PORTS = {"http": 80, "https": 443}
# Parsers disagree about anything else: backslashes, blanks, control characters, other alphabets.
PLAIN_URL = re.compile(r"https?://[!#-;=?-\[\]_a-z~]+", re.IGNORECASE)
HOST = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]", re.IGNORECASE)
# Prefixes of IPv4 behind a translator: well-known (RFC 6052), and local (RFC 8215).
NAT64, LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48")


class Target(NamedTuple):
    """Where a request goes: the host name is resolved."""

    scheme: str
    host: str
    address: str
    port: int
    path: str


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; IPv4 inside IPv6 is judged as IPv4."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if (inside and not is_public(str(inside))) or ip in LOCAL_NAT64:
            return False
    return ip.is_global and not ip.is_multicast


class UrlFetcher:
    """Fetches web addresses within the operator's limits.

    Args:
        allowed_hosts: exact names, in any case; an empty list allows nothing. A port other than the scheme's default
            must be named too, as `host:port`.
        max_bytes: largest body.
        is_allowed_address: which IP addresses may be contacted.
    """

    def __init__(
        self, allowed_hosts: Sequence[str], max_bytes: int, is_allowed_address: Callable[[str], bool] = is_public
    ) -> None:
        self.allowed_hosts = {host.lower() for host in allowed_hosts}
        self.max_bytes = max_bytes
        self.is_allowed_address = is_allowed_address
        self._threads = ThreadPoolExecutor(FETCHES, "llava-fetch")

    def fetch(self, url: str) -> bytes:
        """The body at a web address.

        Raises:
            RequestError: not allowed, not reachable, too slow, too large, or a status other than success.
        """
        fetching = self._threads.submit(self._fetch, url, time.monotonic() + TOTAL_TIMEOUT)
        try:
            return fetching.result(TOTAL_TIMEOUT)
        except TimeoutError as error:  # name resolution and headers may be slow, too
            fetching.cancel()
            raise RequestError(f"the image took longer than {TOTAL_TIMEOUT:.0f} s to fetch") from error

    def _fetch(self, url: str, deadline: float) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = self.resolve(url)
            body, location = self._get(target, deadline)
            if location is None:
                return body
            url = urljoin(f"{target.scheme}://{target.host}:{target.port}{target.path}", location)
        raise RequestError(f"the image's address redirects more than {MAX_REDIRECTS} times")

    def resolve(self, url: str) -> Target:
        """Check an address and resolve its host, once.

        Raises:
            RequestError: it is malformed, its host is not allowed, or its address is not public.
        """
        if not self.allowed_hosts:
            raise RequestError(
                "this server fetches no web addresses; send the image itself as a data: URI "
                "(the operator can allow hosts with --allow-url-hosts)"
            )
        if not PLAIN_URL.fullmatch(url):
            raise RequestError("the image's address is not a plain http:// or https:// URL")
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise RequestError(f"the image's address is malformed ({error})") from error
        if "@" in parts.netloc or not HOST.fullmatch(host if ":" not in host else f"[{host}]"):
            raise RequestError("the image's address must name a host, without user name or password")
        if port is not None and port != PORTS[scheme]:
            host_and_port = f"{host}:{port}"
        else:
            host_and_port, port = host, PORTS[scheme]
        if host_and_port not in self.allowed_hosts:
            raise RequestError(f"the operator does not allow images from '{host_and_port}' (--allow-url-hosts)")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(scheme, host, self._look_up(host, port), port, path)

    def _look_up(self, host: str, port: int) -> str:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise RequestError(f"the host '{host}' of the image is unknown") from error
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(self.is_allowed_address(address) for address in addresses):
            raise RequestError(f"the host '{host}' of the image has no public address; private ones are refused")
        return addresses[0]

    def _get(self, target: Target, deadline: float) -> tuple[bytes, str | None]:
        """The body, or the address of a redirect."""
        options = {"maxsize": 1, "retries": False, "timeout": urllib3.Timeout(total=READ_TIMEOUT)}
        if target.scheme == "https":
            pool = urllib3.HTTPSConnectionPool(
                target.address, target.port, server_hostname=target.host, assert_hostname=target.host, **options
            )
        else:
            pool = urllib3.HTTPConnectionPool(target.address, target.port, **options)
        default = PORTS[target.scheme] == target.port
        headers = {"Host": target.host if default else f"{target.host}:{target.port}", "Accept-Encoding": "identity"}
        try:
            with pool:
                response = pool.urlopen("GET", target.path, headers=headers, redirect=False, preload_content=False)
                with response:
                    return self._read(response, deadline)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RequestError(f"the image at '{target.host}' cannot be fetched ({type(error).__name__})") from error

    def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> tuple[bytes, str | None]:
        if response.status in (301, 302, 303, 307, 308):
            location = response.headers.get("Location")
            if not location:
                raise RequestError("the image's address redirects to nowhere")
            return b"", location
        if response.status != 200:
            raise RequestError(f"the image's address answers with status {response.status}")
        body = bytearray()
        while piece := response.read1(
            CHUNK_BYTES, decode_content=False
        ):  # what has arrived; `stream` waits for a whole chunk
            body += piece
            if len(body) > self.max_bytes:
                raise RequestError(f"the image has more than {self.max_bytes} bytes, the limit")
            if time.monotonic() > deadline:
                raise RequestError(f"the image took longer than {TOTAL_TIMEOUT:.0f} s to fetch")
        return bytes(body), None
