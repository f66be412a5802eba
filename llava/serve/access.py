"""Who may do what: the secret that controller and workers share, the hosts of workers, replicas, the API key.

A controller posts to the addresses that workers name. Without these rules, anybody who reaches it could make it post
to any address (CVE-2024-9309), or receive the prompts and images of users.
"""

import argparse
import hmac
import ipaddress
import logging
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from llava.program import RequestError

logger = logging.getLogger(__name__)

SECRET_VARIABLE = "LLAVA_SECRET"
MAX_REQUEST_MB = 96  # largest request body: eight images of 8 MB as base64, and some text
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
ANY_HOST = "*"
MAX_ADDRESS_LENGTH = 512
# A worker behind a proxy may have a path; nothing in it may change where it leads.
SAFE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?\.?")


class RegistrationRefused(Exception):
    """A peer may not do this here; the message tells what the operator can change."""


@dataclass(frozen=True)
class RegistrationRules:
    """What a controller requires of workers that register.

    Attributes:
        secret: shared by controller and workers; None: none is required.
        allowed_hosts: host names and addresses that workers may have; `*` allows all.
        allow_replicas: whether workers of other machines may serve one model without the secret.
    """

    secret: str | None = None
    allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    allow_replicas: bool = False

    def check_secret(self, given: str | None) -> None:
        """Check the secret of a request.

        Raises:
            RegistrationRefused: this controller has a secret, and the request shows another one or none.
        """
        if self.secret is not None and not self.shows_secret(given):
            raise RegistrationRefused(
                f"this controller requires a shared secret; start the worker with the same {SECRET_VARIABLE} "
                "or --secret-file"
            )

    def shows_secret(self, given: str | None) -> bool:
        """Whether a secret is set here and `given` equals it; compared in constant time."""
        if self.secret is None or given is None:
            return False
        return hmac.compare_digest(self.secret.encode(), given.encode("utf-8", "surrogateescape"))

    def may_share_models(self, given: str | None, peer: str) -> bool:
        """Whether a worker may serve a model that another worker serves already.

        Args:
            given: the secret that the request shows, if any.
            peer: IP address that the request comes from. Several workers on one host are the usual way to scale, so
                the loopback needs no secret.
        """
        return self.allow_replicas or is_loopback(peer) or self.shows_secret(given)

    def check_address(self, address: str) -> None:
        """Check the base URL of a worker before anything is sent there.

        Raises:
            RegistrationRefused: not `http(s)://host[:port][/path]`, or the host is not allowed.
        """
        host = normal_host(host_of(address))
        if ANY_HOST not in self.allowed_hosts and host not in {normal_host(one) for one in self.allowed_hosts}:
            raise RegistrationRefused(
                f"workers on host '{host}' may not register here; start the controller with --allow-hosts {host}"
            )


def is_loopback(peer: str) -> bool:
    """Whether an IP address is this machine's loopback, also as IPv4 inside IPv6."""
    if not is_ip_address(peer):
        return False
    address = ipaddress.ip_address(peer)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def host_of(address: str) -> str:
    """The host of a worker's base URL.

    Raises:
        RegistrationRefused: anything but `http(s)://host[:port][/path]`; parsers disagree about the rest.
    """
    refused = RegistrationRefused("a worker's name must be its address: http://host:port, nothing else")
    # Checked before parsing: urlsplit drops tabs and newlines, and accepts a backslash in a name.
    if len(address) > MAX_ADDRESS_LENGTH or re.search(r"[^!-~]|[\\@?#%]", address):
        raise refused
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname  # a port out of range is a ValueError
    except ValueError as error:
        raise refused from error
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.netloc.endswith(":"):
        raise refused
    if ".." in parts.path or not SAFE_PATH.fullmatch(parts.path):
        raise refused
    if not is_ip_address(host) and not HOST_NAME.fullmatch(host):
        raise refused
    return host


def is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def normal_host(host: str) -> str:
    """One spelling per host: lower case, no dot at the end, addresses in their short form."""
    host = host.strip().lower().removeprefix("[").removesuffix("]")
    return str(ipaddress.ip_address(host)) if is_ip_address(host) else host.removesuffix(".")


def parse_hosts(text: str) -> tuple[str, ...]:
    """Parse `--allow-hosts`: names and addresses, separated by commas."""
    return tuple(normal_host(one) for one in text.split(",") if one.strip())


def add_secret_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--secret-file`. The secret itself is no flag: command lines are visible to every user of the machine."""
    parser.add_argument(
        "--secret-file",
        type=str,
        default=None,
        help=f"file with the secret that controller and workers share (default: the variable {SECRET_VARIABLE})",
    )


def read_secret(path: str | None) -> str | None:
    """The shared secret: from a file if one is named, else from the environment, else None.

    Raises:
        RequestError: it is empty, or not allowed in an HTTP header.
        OSError: the file cannot be read.
    """
    if path is None:
        secret, source = os.environ.get(SECRET_VARIABLE), SECRET_VARIABLE
        if not secret:
            return None
    else:
        with open(path, encoding="utf-8") as file:
            secret, source = file.read(), path
        if os.stat(path).st_mode & 0o007:
            logger.warning("%s is readable by every user of this machine: chmod 600 it.", path)
    secret = secret.strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise RequestError(f"the secret in {source} must be one line of printable ASCII characters")
    return secret


def shows_api_key(api_key: str | None, authorization: str) -> bool:
    """Whether an `Authorization` header holds the API key as a bearer token; always, where no key is set."""
    given = authorization.removeprefix("Bearer ")
    return api_key is None or hmac.compare_digest(given.encode(), api_key.encode())
