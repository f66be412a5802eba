"""The controller: knows the workers, picks one for a model, relays streams. Runs without torch.

python -m llava.serve.controller --port 10000
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
    MAX_REQUEST_MB,
    RegistrationRules,
    add_secret_argument,
    parse_hosts,
    read_secret,
)
from llava.serve.control.state import Controller, DispatchMethod, WorkerInfo
from llava.serve.http_client import log_failures_only
from llava.utils import build_logger

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Controller", "DispatchMethod", "WorkerInfo", "main"]

logger = logging.getLogger(__name__)


@cache
def _default_app() -> "FastAPI":
    from llava.serve.control.routes import create_app

    return create_app(Controller("shortest_queue"))


def __getattr__(name: str) -> Any:
    """`app` with all defaults, for `uvicorn llava.serve.controller:app`; built on first access."""
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the controller. None may begin with `--controller` or `--worker`: these are used as abbreviations."""
    parser = argparse.ArgumentParser(description="Knows the workers, and picks one for a model.")
    parser.add_argument("--host", type=str, default="localhost")
    parser.add_argument("--port", type=int, default=21001)
    parser.add_argument("--dispatch-method", type=str, choices=["lottery", "shortest_queue"], default="shortest_queue")
    parser.add_argument(
        "--allow-hosts",
        type=parse_hosts,
        default=LOOPBACK_HOSTS,
        help=f"comma-separated hosts on which workers may run ({ANY_HOST}: any); default: this machine",
    )
    parser.add_argument(
        "--allow-replicas",
        action="store_true",
        help="let workers of other machines serve one model without a shared secret",
    )
    parser.add_argument(
        "--heart-beat-expiration",
        type=float,
        default=CONTROLLER_HEART_BEAT_EXPIRATION,
        help="seconds without a heart beat after which a worker is removed",
    )
    parser.add_argument("--stream-timeout", type=float, default=120, help="seconds a stream may be silent")
    parser.add_argument("--max-request-mb", type=int, default=MAX_REQUEST_MB, help="largest request body")
    add_secret_argument(parser)
    return parser


def main() -> None:
    """Serve until interrupted.

    Raises:
        RequestError: a flag cannot be used; names it.
        ImportError: a package of the `serve` extra is missing.
    """
    args = build_parser().parse_args()
    from llava.serve.http_layer import run_server  # the extra is checked here; before control, which needs it

    for flag in ("heart_beat_expiration", "stream_timeout", "max_request_mb"):
        if not getattr(args, flag) > 0:
            raise RequestError(f"--{flag.replace('_', '-')} must be above 0")
    from llava.serve.control.routes import create_app
    from llava.serve.control.worker_client import Timeouts

    rules = RegistrationRules(read_secret(args.secret_file), args.allow_hosts, args.allow_replicas)
    build_logger("controller", "controller.log")
    log_failures_only()
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
