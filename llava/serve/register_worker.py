"""Register a worker by hand; without `--check-heart-beat` it stays for good (contract: serve.md 5)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.program import run_program
from llava.serve.access import add_secret_argument, read_secret
from llava.serve.wire import SECRET_HEADER, direct_session

# The controller asks the worker for its status before it answers, for 5 seconds at most.
TIMEOUT = 15


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Register a worker by hand.")
    parser.add_argument("--controller-address", type=str, required=True)
    parser.add_argument("--worker-name", type=str, required=True, help="the worker's base URL: http://host:port")
    parser.add_argument("--check-heart-beat", action="store_true", help="forget the worker when its heart beats end")
    add_secret_argument(parser)
    return parser


def main() -> None:
    """Register.

    Raises:
        AssertionError: the controller refuses; says why.
        OSError: the controller cannot be reached (`requests.RequestException`).
    """
    args = build_parser().parse_args()
    secret = read_secret(args.secret_file)
    with direct_session() as session:
        response = session.post(
            args.controller_address.rstrip("/") + "/register_worker",
            json={"worker_name": args.worker_name, "check_heart_beat": args.check_heart_beat, "worker_status": None},
            headers={SECRET_HEADER: secret} if secret else {},
            timeout=TIMEOUT,
            allow_redirects=False,
        )
    if response.status_code != 200:
        raise AssertionError(f"{args.controller_address} refuses {args.worker_name}: {response.text}")


if __name__ == "__main__":
    run_program(main)
