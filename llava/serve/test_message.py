"""Send one message to a worker and print its reply as it grows.

python -m llava.serve.test_message --controller http://localhost:10000 --model-name llava-v1.5-7b
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.chat import append_question, stop_string
from llava.conversation import default_conversation
from llava.program import RequestError, run_program
from llava.serve import wire
from llava.serve.http_client import post, stream_request

TIMEOUT = 10  # seconds for the controller's answers
STORY = "Tell me a story with more than 1000 words."


def build_parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    parser = argparse.ArgumentParser(description="Send one message to a worker and print its reply.")
    parser.add_argument("--controller-address", type=str, default="http://localhost:21001")
    parser.add_argument("--worker-address", type=str, default=None, help="ask this worker, without a controller")
    parser.add_argument("--model-name", type=str, default="facebook/opt-350m")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--message", type=str, default=STORY)
    return parser


def main() -> None:
    """Ask, and print.

    Raises:
        RequestError: the worker answers with an error.
        WireError: controller or worker cannot be reached.
    """
    args = build_parser().parse_args()
    address = args.worker_address or find_worker(args.controller_address, args.model_name)
    if not address:
        return
    conversation = default_conversation.copy()
    append_question(conversation, args.message)
    prompt = conversation.get_prompt()
    params = {
        "model": args.model_name,
        "prompt": prompt,
        "max_new_tokens": args.max_new_tokens,
        "temperature": 0.7,
        "stop": stop_string(conversation),
    }
    shown = ""
    for received in stream_request(address, params):
        if received["error_code"] != wire.OK:
            raise RequestError(f"{wire.error_message(received)} (error_code: {received['error_code']})")
        reply = received["text"][len(prompt) :]
        # Usually the text grows, and its new part is printed; a stop string may have been cut off meanwhile.
        print(reply[len(shown) :] if reply.startswith(shown) else f"\r{reply}", end="", flush=True)
        shown = reply
    print()


def find_worker(controller: str, model_name: str) -> str:
    """Ask a controller for a worker and print its answers; empty if no worker serves the model."""
    ask(controller, "/refresh_all_workers")
    models = ask(controller, "/list_models")["models"]
    print(f"Models: {sorted(models)}")
    address = ask(controller, "/get_worker_address", {"model": model_name})["address"]
    print(f"worker_addr: {address}")
    return address


def ask(controller: str, path: str, question: dict[str, Any] | None = None) -> Any:
    """The JSON of a controller's answer.

    Raises:
        WireError: it cannot be reached, or answers with another status than 200.
    """
    response = post(controller.rstrip("/") + path, question, timeout=TIMEOUT)
    if response.status_code != 200:
        raise wire.WireError(f"{controller}{path} answered with status {response.status_code}")
    return response.json()


if __name__ == "__main__":
    run_program(main)
