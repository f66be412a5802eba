"""The controller: knows the workers, names one for a model, relays streams (contract: serve.md 1).

Starts without torch. `python -m llava.serve.controller`, or `create_app` for a server of your own.
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.program import RequestError, run_program
from llava.serve.access import (
    ANY_HOST,
    LOOPBACK_HOSTS,
    RegistrationRules,
    add_secret_argument,
    parse_hosts,
    read_secret,
)
from llava.serve.control.state import Controller, DispatchMethod, WorkerInfo
from llava.serve.http_server import require_serving, run_server
from llava.utils import build_logger

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava.serve.control.worker_client import Timeouts

__all__ = ["Controller", "DispatchMethod", "WorkerInfo", "create_app", "main"]

logger = logging.getLogger(__name__)

# The controller passes requests on, pictures included.
MAX_REQUEST_MB = 96


def create_app(
    controller: Controller,
    *,
    rules: RegistrationRules | None = None,
    timeouts: "Timeouts | None" = None,
    max_body_bytes: int = MAX_REQUEST_MB * 2**20,
    expire_every: float = CONTROLLER_HEART_BEAT_EXPIRATION,
) -> "FastAPI":
    """The web application of a controller.

    Args:
        rules: who may register; default: workers on this machine, without a secret.
        timeouts: how long workers are waited for.
        max_body_bytes: larger requests are answered with 413.
        expire_every: seconds between two looks for workers whose heart beats have ended.

    Raises:
        ImportError: a package of the `serve` extra is missing.
    """
    require_serving()
    from llava.serve.control.routes import build_app
    from llava.serve.control.worker_client import Timeouts

    return build_app(controller, rules or RegistrationRules(), timeouts or Timeouts(), max_body_bytes, expire_every)


@cache
def _default_app() -> "FastAPI":
    return create_app(Controller("shortest_queue"))


def __getattr__(name: str) -> Any:
    """`app`, with all defaults, for `uvicorn llava.serve.controller:app`; built when first asked for (S-13, S-19)."""
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the controller; none may begin with `--controller` or `--worker`."""
    parser = argparse.ArgumentParser(description="Knows the workers, and names one for a model.")
    parser.add_argument("--host", type=str, default="localhost")
    parser.add_argument("--port", type=int, default=21001)
    parser.add_argument("--dispatch-method", type=str, choices=["lottery", "shortest_queue"], default="shortest_queue")
    parser.add_argument(
        "--allow-hosts",
        type=parse_hosts,
        default=LOOPBACK_HOSTS,
        help=f"hosts, between commas, on which workers may run ({ANY_HOST}: any); default: this machine",
    )
    parser.add_argument(
        "--allow-replicas",
        action="store_true",
        help="let several workers serve one model without a shared secret",
    )
    parser.add_argument(
        "--heart-beat-expiration",
        type=float,
        default=CONTROLLER_HEART_BEAT_EXPIRATION,
        help="seconds without a heart beat after which a worker is forgotten",
    )
    parser.add_argument("--stream-timeout", type=float, default=120, help="seconds a stream may be silent")
    parser.add_argument("--max-request-mb", type=int, default=MAX_REQUEST_MB, help="largest request body")
    add_secret_argument(parser)
    return parser


def main() -> None:
    """Serve until interrupted.

    Raises:
        RequestError: a flag cannot be used; says which.
        ImportError: a package of the `serve` extra is missing.
    """
    args = build_parser().parse_args()
    require_serving()
    from llava.serve.control.worker_client import Timeouts

    for flag in ("heart_beat_expiration", "stream_timeout", "max_request_mb"):
        if not getattr(args, flag) > 0:
            raise RequestError(f"--{flag.replace('_', '-')} must be above 0")
    rules = RegistrationRules(read_secret(args.secret_file), args.allow_hosts, args.allow_replicas)
    build_logger("controller", "controller.log")
    logger.info("args: %s", args)
    if rules.secret is None and set(rules.allowed_hosts) != set(LOOPBACK_HOSTS):
        logger.warning("Workers of other machines may register and no secret is set: see --secret-file.")
    app = create_app(
        Controller(args.dispatch_method, expiration=args.heart_beat_expiration),
        rules=rules,
        timeouts=Timeouts(stream=args.stream_timeout),
        max_body_bytes=args.max_request_mb * 2**20,
        expire_every=args.heart_beat_expiration,
    )
    run_server(app, args.host, args.port)


if __name__ == "__main__":
    run_program(main)
