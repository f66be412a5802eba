"""Send one message to a worker and print its reply as it grows (contract: serve.md 6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from typing import Any

from llava.conversation import SeparatorStyle, default_conversation
from llava.program import RequestError, run_program
from llava.serve import wire

TIMEOUT = 10  # seconds for the controller's answers
STORY = "Tell me a story with more than 1000 words."


def build_parser() -> argparse.ArgumentParser:
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
        OSError: controller or worker cannot be reached (`requests.RequestException`).
    """
    args = build_parser().parse_args()
    address = args.worker_address or find_worker(args.controller_address, args.model_name)
    if not address:
        return
    prompt, stop = new_prompt(args.message)
    params = {
        "model": args.model_name,
        "prompt": prompt,
        "max_new_tokens": args.max_new_tokens,
        "temperature": 0.7,
        "stop": stop,
    }
    shown = ""
    for received in wire.stream_request(address, params):
        if received["error_code"] != wire.OK:
            raise RequestError(f"{wire.error_message(received)} (error_code: {received['error_code']})")
        reply = received["text"][len(prompt) :]
        # Where the text only grew, its new part is printed; a stop string may have been cut off meanwhile.
        print(reply[len(shown) :] if reply.startswith(shown) else f"\r{reply}", end="", flush=True)
        shown = reply
    print()


def new_prompt(message: str) -> tuple[str, str]:
    """The prompt of a new chat with the assistant's turn open (S-17), and what ends such a turn."""
    conversation = default_conversation.copy()
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    # In the default template `sep` is a space: as a stop string it would end the reply after a word.
    one_separator = conversation.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT)
    return conversation.get_prompt(), conversation.sep if one_separator else conversation.sep2


def find_worker(controller: str, model_name: str) -> str:
    """Ask a controller for a worker, printing what it says; empty if it knows none for the model."""
    ask(controller, "/refresh_all_workers")
    models = ask(controller, "/list_models")["models"]
    print(f"Models: {sorted(models)}")
    address = ask(controller, "/get_worker_address", {"model": model_name})["address"]
    print(f"worker_addr: {address}")
    return address


def ask(controller: str, path: str, question: dict | None = None) -> Any:
    with wire.direct_session() as session:
        response = session.post(controller.rstrip("/") + path, json=question, timeout=TIMEOUT)
    response.raise_for_status()
    return response.json()


if __name__ == "__main__":
    run_program(main)
