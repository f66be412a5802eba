"""A worker without a model of its own: an SGLang server generates (contract: serve.md 4).

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
from typing import Any

from PIL import Image

from llava.chat import check_markers
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.mm_utils import get_model_name_from_path
from llava.program import RequestError, run_program
from llava.serve import wire
from llava.serve.access import read_secret
from llava.serve.http_server import require_serving, run_server
from llava.serve.worker.base import BaseWorker, add_worker_arguments, create_worker_app, new_worker_id
from llava.serve.worker.image_intake import ImageLimits
from llava.utils import build_logger

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
SPARE_THREADS = 8  # for decoding pictures
SILENCE = 60.0  # seconds without a piece of text; then the back end counts as gone

Part = str | Image.Image


class SGLangWorker(BaseWorker):
    """Passes requests to an SGLang server.

    Args:
        controller_addr, worker_addr, worker_id, no_register, limit_concurrency, secret, max_waiting: see `BaseWorker`.
        sgl_endpoint: URL of the SGLang server.
        model_name: name to register; None: from the server's `model_path`.

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
        **options: Any,
    ) -> None:
        self.sglang = import_sglang()
        self.program = answer_program(self.sglang)
        try:
            self.backend = self.sglang.RuntimeEndpoint(sgl_endpoint)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise RequestError(f"no SGLang server answers at {sgl_endpoint} ({error}); check --sgl-endpoint") from error
        self.sglang.set_default_backend(self.backend)
        self.model_name = model_name or get_model_name_from_path(self.backend.model_info["model_path"])
        super().__init__(
            *(controller_addr, worker_addr, worker_id, no_register, [self.model_name], limit_concurrency, secret),
            **options,
        )

    async def stream(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Frames of one reply; `stop` is read and not used, as the original does it.

        Raises:
            RequestError: pictures and markers do not match, or a number is none.
            ImageError: a picture cannot be used.
            TimeoutError: the server has fallen silent.
        """
        prompt = params["prompt"]
        # Off the event loop: decoding pictures takes its time.
        parts = await asyncio.to_thread(prompt_parts, prompt, params.get("images"))
        temperature, top_p, max_tokens = sampling_settings(params)
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
        """Heart beats, and threads enough: sglang waits for each running reply in one."""
        super().start()
        threads = ThreadPoolExecutor(self.slots.limit + SPARE_THREADS, thread_name_prefix="sglang")
        asyncio.get_running_loop().set_default_executor(threads)


def import_sglang() -> Any:
    """The sglang package.

    Raises:
        ImportError: it is not installed; says what to do.
    """
    try:
        import sglang
    except ImportError as error:
        raise ImportError("sglang is needed for this worker and not installed: pip install sglang") from error
    return sglang


def answer_program(sglang: Any) -> Any:
    """The SGLang program of one reply: the parts of the prompt in turn, then the reply."""

    @sglang.function
    def answer(state: Any, parts: list[Part], max_tokens: int) -> None:
        for part in parts:
            state += part if isinstance(part, str) else sglang.image(part)
        state += sglang.gen("reply", max_tokens=max_tokens)

    return answer


def prompt_parts(prompt: str, images: Any) -> list[Part]:
    """The prompt cut at its markers, with the pictures between.

    A blank before a marker and a newline after it belong to the marker: ` <image>` + newline is the picture alone.

    Raises:
        RequestError: not one marker for each picture, or too many of them.
        ImageError: a picture cannot be used.
    """
    images = images or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError("images must be a list of base64 encoded files")
    limits = ImageLimits()
    limits.check_count(len(images))
    check_markers(prompt, len(images))
    prompt = prompt.replace(f" {DEFAULT_IMAGE_TOKEN}", DEFAULT_IMAGE_TOKEN)
    prompt = prompt.replace(f"{DEFAULT_IMAGE_TOKEN}\n", DEFAULT_IMAGE_TOKEN)
    first, *rest = prompt.split(DEFAULT_IMAGE_TOKEN)
    parts: list[Part] = [first]
    for image, text in zip(images, rest, strict=True):
        parts += [limits.decode_base64(image), text]
    return [part for part in parts if part != ""]


def sampling_settings(params: dict[str, Any]) -> tuple[float, float, int]:
    """Temperature, top p, and new tokens of a request; they may be written as texts, as old clients do.

    Raises:
        RequestError: one is no number, or out of its range.
    """
    try:
        temperature = float(params.get("temperature", 1.0))
        top_p = float(params.get("top_p", 1.0))
        new_tokens = int(params.get("max_new_tokens", 256))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"temperature, top_p and max_new_tokens must be numbers ({error})") from error
    if not 0 <= temperature <= 100 or not 0 <= top_p <= 1 or new_tokens < 0:
        raise RequestError("temperature must be 0 to 100, top_p 0 to 1, max_new_tokens at least 0")
    return temperature, top_p, min(new_tokens, MAX_NEW_TOKENS)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A worker in front of an SGLang server.")
    add_worker_arguments(parser)
    parser.add_argument("--sgl-endpoint", type=str, required=True, help="URL of the running SGLang server")
    return parser


def main() -> None:
    """Serve until interrupted.

    Raises:
        RequestError: a flag cannot be used; says which.
        ImportError: sglang, or a package of the `serve` extra, is missing.
    """
    args = build_parser().parse_args()
    require_serving()
    secret = read_secret(args.secret_file)
    worker_id = new_worker_id()
    build_logger("model_worker", f"model_worker_{worker_id}.log")
    logger.info("args: %s", args)
    worker = SGLangWorker(
        *(args.controller_address, args.worker_address, args.sgl_endpoint, worker_id, args.no_register),
        *(args.model_name, args.limit_model_concurrency, secret),
        max_waiting=args.max_waiting,
    )
    run_server(create_worker_app(worker, max_body_bytes=args.max_request_mb * 2**20), args.host, args.port)


if __name__ == "__main__":
    run_program(main)
