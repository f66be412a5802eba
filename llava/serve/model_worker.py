"""A worker with a model: upstream's wire, an OpenAI-compatible API (`/v1`), `/health` and `/metrics`.

    python -m llava.serve.model_worker --controller http://localhost:10000 --port 40000 \\
        --worker http://localhost:40000 --model-path checkpoints/llava-v1.5-7b-acformer-145
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
import math
from collections.abc import AsyncGenerator
from typing import Any

from llava.inference import add_connector_arguments, connector_overrides
from llava.mm_utils import get_model_name_from_path
from llava.program import RequestError, run_program
from llava.serve.access import parse_hosts, read_secret
from llava.serve.http_client import log_failures_only
from llava.serve.image_limits import ImageLimits
from llava.serve.worker.base import BaseWorker, add_worker_arguments, new_worker_id
from llava.serve.worker.options import ServingOptions
from llava.utils import build_logger

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "LLAVA_API_KEY"


class ModelWorker(BaseWorker):
    """A worker that holds a model. torch is imported when one is made, so that the flags are parsed first.

    Args:
        controller_addr, worker_addr, worker_id, no_register, secret: see `BaseWorker`.
        model_path, model_base, load_8bit, load_4bit, device, use_flash_attn: see `load_pretrained_model`.
        model_name: name to register under; None: from the path.
        options: of the engine and for images.

    Raises:
        RequestError: the model cannot run on this machine.
        Exception: what `load_pretrained_model` raises.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_path: str,
        model_base: str | None,
        model_name: str | None,
        load_8bit: bool,
        load_4bit: bool,
        device: str,
        use_flash_attn: bool = False,
        *,
        options: ServingOptions | None = None,
        secret: str | None = None,
    ) -> None:
        from llava.serve.worker.served_model import load_served_model

        name = model_name or get_model_name_from_path(model_path.removesuffix("/"))
        super().__init__(controller_addr, worker_addr, worker_id, no_register, [name], secret)
        logger.info("Loading the model %s on worker %s ...", name, worker_id)
        self.served = load_served_model(
            *(model_path, model_base, name, load_8bit, load_4bit, device, use_flash_attn, options or ServingOptions())
        )

    def get_queue_length(self) -> int:
        """Requests in the engine; it is the only queue."""
        return self.served.engine.num_queued + self.served.engine.num_active

    @property
    def is_healthy(self) -> bool:
        """Whether the engine is running."""
        return self.served.engine.is_alive

    def stop(self) -> None:
        """Stop heart beats and the engine."""
        super().stop()
        self.served.engine.close()

    def stream(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """One frame per token with all text so far, and a last one; see `stream_frames`."""
        from llava.serve.worker.wire_request import stream_frames

        return stream_frames(params, self.served)


def build_parser() -> argparse.ArgumentParser:
    """Flags of the model worker."""
    parser = argparse.ArgumentParser(description="A worker with a model.")
    add_worker_arguments(parser)
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--device", type=str, default="cuda", help="cuda, mps or cpu; without CUDA the CPU is used")
    parser.add_argument("--multi-modal", action="store_true", help="accepted for old scripts: the model decides")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true", help="accepted: the engine has its own attention")
    add_connector_arguments(parser)
    parser.add_argument("--cache-gb", type=float, default=None, help="GiB for keys and values; default: by free memory")
    parser.add_argument("--picture-cache-gb", type=float, default=0.25, help="GiB for encoded images")
    parser.add_argument(
        "--prefill-chunk", type=int, default=None, help="prompt tokens processed between two tokens of running replies"
    )
    parser.add_argument("--max-images", type=int, default=ImageLimits.max_images, help="images per request")
    parser.add_argument("--max-image-mb", type=float, default=ImageLimits.max_bytes / 2**20, help="of one file")
    parser.add_argument("--max-image-pixels", type=int, default=ImageLimits.max_pixels, help="width x height")
    parser.add_argument(
        "--allow-url-hosts",
        type=str,
        default="",
        help="comma-separated hosts from which images may be fetched that clients name (default: none)",
    )
    parser.add_argument("--api-key", type=str, default=None, help=f"for /v1 (default: the variable {API_KEY_VARIABLE})")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Check the range of numbers.

    Raises:
        RequestError: a number is out of range; names the flag.
    """
    for name in ("limit_model_concurrency", "max_waiting", "max_images", "max_image_pixels"):
        if getattr(args, name) < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be 1 or more")
    for name in ("cache_gb", "max_image_mb", "prefill_chunk"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise RequestError(f"--{name.replace('_', '-')} must be more than 0")
    if not 0 <= args.picture_cache_gb < math.inf:
        raise RequestError("--picture-cache-gb must be 0 or more")


def main() -> None:
    """Serve until interrupted.

    Raises:
        RequestError: a flag cannot be used; names it.
        ImportError: a package of the `serve` extra is missing.
    """
    args = build_parser().parse_args()
    check_flags(args)
    from llava.serve.http_layer import check_port, run_server

    check_port(args.host, args.port)  # before anything large is loaded
    # The log file is attached to the loggers that exist when it is opened.
    from llava.serve.worker import model_app, wire_request  # noqa: F401

    worker_id = new_worker_id()
    secret = read_secret(args.secret_file)
    log = build_logger("model_worker", f"model_worker_{worker_id}.log")
    log_failures_only()
    log.info("args: %s", {**vars(args), "api_key": "set" if args.api_key else None})
    if args.multi_modal:
        log.warning("--multi-modal is not needed: the configuration tells whether a model takes images.")
    worker = ModelWorker(
        *(args.controller_address, args.worker_address, worker_id, args.no_register),
        *(args.model_path, args.model_base, args.model_name, args.load_8bit, args.load_4bit),
        *(args.device, args.use_flash_attn),
        options=ServingOptions(
            max_rows=args.limit_model_concurrency,
            max_waiting=args.max_waiting,
            cache_gb=args.cache_gb,
            image_cache_gb=args.picture_cache_gb,
            prefill_chunk=args.prefill_chunk,
            limits=ImageLimits(args.max_images, int(args.max_image_mb * 2**20), args.max_image_pixels),
            url_hosts=parse_hosts(args.allow_url_hosts),
            overrides=connector_overrides(args),
        ),
        secret=secret,
    )
    api_key = args.api_key or os.environ.get(API_KEY_VARIABLE)
    run_server(model_app.create_app(worker, worker.served, args.max_request_mb * 2**20, api_key), args.host, args.port)


if __name__ == "__main__":
    run_program(main)
