"""A worker without a model of its own: an SGLang server generates.

    python -m llava.serve.sglang_worker --sgl-endpoint http://127.0.0.1:30000 --controller http://localhost:10000

sglang is imported here only, and only when the worker starts.
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import asyncio
import logging
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any

from PIL import Image

from llava.chat import check_markers
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.mm_utils import get_model_name_from_path
from llava.program import RequestError, run_program
from llava.serve import wire
from llava.serve.access import read_secret
from llava.serve.http_client import log_failures_only
from llava.serve.image_limits import ImageLimits
from llava.serve.worker.base import MAX_WAITING, BaseWorker, add_worker_arguments, new_worker_id
from llava.serve.worker.fields import MAX_NEW_TOKENS, image_files, number, whole
from llava.serve.worker.slots import Slots
from llava.utils import build_logger

logger = logging.getLogger(__name__)

SPARE_THREADS = 8  # for decoding images
SILENCE = 60.0  # seconds without a piece of text after which the back end counts as gone

Part = str | Image.Image


class SGLangWorker(BaseWorker):
    """Passes requests to an SGLang server.

    Args:
        controller_addr, worker_addr, worker_id, no_register, secret: see `BaseWorker`.
        sgl_endpoint: URL of the SGLang server.
        model_name: name to register; None: from the server's `model_path`.
        limit_concurrency: requests that run at once.
        max_waiting: requests that may wait; further ones are refused as busy.

    Raises:
        ImportError: sglang is not installed.
        RequestError: the server cannot be reached.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        sgl_endpoint: str,
        worker_id: str,
        no_register: bool,
        model_name: str | None,
        limit_concurrency: int = 5,
        secret: str | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.sglang = import_sglang()
        self.program = answer_program(self.sglang)
        try:
            self.backend = self.sglang.RuntimeEndpoint(sgl_endpoint)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise RequestError(f"no SGLang server answers at {sgl_endpoint} ({error}); check --sgl-endpoint") from error
        self.sglang.set_default_backend(self.backend)
        self.model_name = model_name or get_model_name_from_path(self.backend.model_info["model_path"])
        self.slots = Slots(limit_concurrency, max_waiting)
        super().__init__(controller_addr, worker_addr, worker_id, no_register, [self.model_name], secret)

    def get_queue_length(self) -> int:
        """Requests that run or wait in `slots`."""
        return len(self.slots)

    def admit(self) -> AbstractAsyncContextManager[None]:
        """A slot: SGLang's own queue is not limited."""
        return self.slots.one()

    async def stream(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The frames of one reply; `stop` is ignored, as in upstream.

        Raises:
            RequestError: images and markers do not match, or a number is out of range.
            ImageError: an image cannot be used.
            TimeoutError: the server went silent.
        """
        prompt = params["prompt"]
        # Images are decoded off the event loop.
        parts = await asyncio.to_thread(prompt_parts, prompt, image_files(params))
        temperature = number(params, "temperature", 1.0, 0.0, 100.0)
        top_p = number(params, "top_p", 1.0, 0.0, 1.0)
        max_tokens = min(whole(params, "max_new_tokens", 256, 0, 2**31), MAX_NEW_TOKENS)
        state = self.program.run(parts, max_tokens, temperature=temperature, top_p=top_p, stream=True)
        pieces = state.text_async_iter(var_name="reply")
        text = prompt
        try:
            while (piece := await asyncio.wait_for(anext(pieces, None), SILENCE)) is not None:
                text += piece
                yield wire.frame(text)
        finally:
            await pieces.aclose()

    def start(self) -> None:
        """Start heart beats, and provide threads: sglang waits for each running reply in one."""
        super().start()
        threads = ThreadPoolExecutor(self.slots.limit + SPARE_THREADS, thread_name_prefix="sglang")
        asyncio.get_running_loop().set_default_executor(threads)


def import_sglang() -> Any:
    """The sglang package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import sglang
    except ImportError as error:
        raise ImportError("sglang is needed for this worker and not installed: pip install sglang") from error
    return sglang


def answer_program(sglang: Any) -> Any:
    """The SGLang program of one reply: the parts of the prompt in order, then the reply."""

    @sglang.function
    def answer(state: Any, parts: list[Part], max_tokens: int) -> None:
        for part in parts:
            state += part if isinstance(part, str) else sglang.image(part)
        state += sglang.gen("reply", max_tokens=max_tokens)

    return answer


def prompt_parts(prompt: str, files: list[str]) -> list[Part]:
    """The prompt split at its markers, with the decoded images between.

    A blank before a marker and a newline after it belong to the marker: ` <image>` + newline becomes the image alone.

    Raises:
        RequestError: not one marker per image, or too many images.
        ImageError: an image cannot be used.
    """
    limits = ImageLimits()
    limits.check_count(len(files))
    check_markers(prompt, len(files))
    prompt = prompt.replace(f" {DEFAULT_IMAGE_TOKEN}", DEFAULT_IMAGE_TOKEN)
    prompt = prompt.replace(f"{DEFAULT_IMAGE_TOKEN}\n", DEFAULT_IMAGE_TOKEN)
    first, *rest = prompt.split(DEFAULT_IMAGE_TOKEN)
    parts: list[Part] = [first]
    for file, text in zip(files, rest, strict=True):
        parts += [limits.decode_base64(file), text]
    return [part for part in parts if part != ""]


def build_parser() -> argparse.ArgumentParser:
    """Flags of the SGLang worker."""
    parser = argparse.ArgumentParser(description="A worker in front of an SGLang server.")
    add_worker_arguments(parser)
    parser.add_argument("--sgl-endpoint", type=str, required=True, help="URL of the running SGLang server")
    return parser


def main() -> None:
    """Serve until interrupted.

    Raises:
        RequestError: a flag cannot be used; names it.
        ImportError: sglang, or a package of the `serve` extra, is missing.
    """
    args = build_parser().parse_args()
    from llava.serve.http_layer import run_server
    from llava.serve.worker.app import create_worker_app

    secret = read_secret(args.secret_file)
    worker_id = new_worker_id()
    build_logger("model_worker", f"model_worker_{worker_id}.log")
    log_failures_only()
    logger.info("args: %s", args)
    worker = SGLangWorker(
        *(args.controller_address, args.worker_address, args.sgl_endpoint, worker_id, args.no_register),
        *(args.model_name, args.limit_model_concurrency, secret),
        max_waiting=args.max_waiting,
    )
    run_server(create_worker_app(worker, max_body_bytes=args.max_request_mb * 2**20), args.host, args.port)


if __name__ == "__main__":
    run_program(main)
