"""Register a worker by hand; without `--check-heart-beat`, its entry never expires.

python -m llava.serve.register_worker --controller http://localhost:10000 --worker-name http://localhost:40000
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.program import run_program
from llava.serve.access import add_secret_argument, read_secret
from llava.serve.http_client import post
from llava.serve.wire import SECRET_HEADER

TIMEOUT = 15  # seconds; the controller asks the worker for its status first, for up to 5 seconds


def build_parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    parser = argparse.ArgumentParser(description="Register a worker by hand.")
    parser.add_argument("--controller-address", type=str, required=True)
    parser.add_argument("--worker-name", type=str, required=True, help="the worker's base URL: http://host:port")
    parser.add_argument("--check-heart-beat", action="store_true", help="remove the worker when its heart beats stop")
    add_secret_argument(parser)
    return parser


def main() -> None:
    """Register.

    Raises:
        AssertionError: the controller refuses; contains its message.
        WireError: the controller cannot be reached.
    """
    args = build_parser().parse_args()
    secret = read_secret(args.secret_file)
    response = post(
        args.controller_address.rstrip("/") + "/register_worker",
        {"worker_name": args.worker_name, "check_heart_beat": args.check_heart_beat, "worker_status": None},
        headers={SECRET_HEADER: secret} if secret else {},
        timeout=TIMEOUT,
    )
    if response.status_code != 200:
        raise AssertionError(f"{args.controller_address} refuses {args.worker_name}: {response.text}")


if __name__ == "__main__":
    run_program(main)
