"""A worker with a model: python -m llava.serve.model_worker --model-path ... (contract: serve.md 2).

Upstream's wire, and beside it an OpenAI-compatible API (`/v1`), `/health` and `/metrics`.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

import torch
from transformers import PreTrainedModel

from llava.chat import infer_template
from llava.inference import add_connector_arguments, connector_overrides, inference_options
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.program import RequestError, run_program
from llava.serve import wire
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import ContextFullError, EngineSettings
from llava.serve.engine.reply_text import whole_words
from llava.serve.http_server import check_port, require_serving, run_server
from llava.serve.worker.base import BaseWorker, add_worker_arguments, create_worker_app, new_worker_id
from llava.serve.worker.image_intake import ImageLimits
from llava.serve.worker.reply_stream import ReplyStream
from llava.serve.worker.served_model import ServedModel
from llava.serve.worker.url_fetch import UrlFetcher
from llava.serve.worker.wire_request import generation_request
from llava.utils import build_logger

logger = logging.getLogger(__name__)

CONTEXT_FULL = "Exceeds max token length. Please start a new conversation, thanks."
GIB = 2**30
API_KEY_VARIABLE = "LLAVA_API_KEY"


class ModelWorker(BaseWorker):
    """A worker that holds a model.

    Args:
        controller_addr, worker_addr, worker_id, no_register: see `BaseWorker`.
        model_path, model_base, load_8bit, load_4bit, device, use_flash_attn: see `load_pretrained_model`.
        model_name: name to register under; None: from the path.
        max_rows: replies that run at once.
        max_waiting: requests that may wait for that.
        cache_gb: room for keys and values in GiB; None: by what the device has free.
        picture_cache_gb: room for encoded pictures in GiB.
        prefill_chunk: prompt tokens read between two tokens of the running replies; None: by the device.
        limits: on pictures.
        url_hosts: hosts from which pictures may be fetched that clients name.
        overrides: of the connector, for `load_pretrained_model`.

    Raises:
        what `load_pretrained_model` raises.
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
        max_rows: int = 5,
        max_waiting: int = 64,
        cache_gb: float | None = None,
        picture_cache_gb: float = 0.25,
        prefill_chunk: int | None = None,
        limits: ImageLimits | None = None,
        url_hosts: tuple[str, ...] = (),
        secret: str | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        name = model_name or get_model_name_from_path(model_path.removesuffix("/"))
        # The engine queues and refuses; the slots only count what is under way.
        super().__init__(controller_addr, worker_addr, worker_id, no_register, [name], sys.maxsize, secret)
        logger.info("Loading the model %s on worker %s ...", name, worker_id)
        base = None if model_base is None else os.path.expanduser(model_base)
        tokenizer, model, image_processor, _ = load_pretrained_model(
            *(os.path.expanduser(model_path), base, get_model_name_from_path(model_path), load_8bit, load_4bit),
            use_flash_attn=use_flash_attn,
            **inference_options(device),
            **(overrides or {}),
        )
        limits = limits or ImageLimits()
        settings = EngineSettings(
            max_rows=max_rows,
            max_queue=max_waiting,
            cache_bytes=default_cache_bytes(model) if cache_gb is None else int(cache_gb * GIB),
            picture_cache_bytes=int(picture_cache_gb * GIB),
            prefill_chunk=prefill_chunk or (512 if model.device.type == "cuda" else 128),
            context_length=getattr(model.config, "max_position_embeddings", None) or 2048,
        )
        logger.info("Engine: %s", settings)
        engine = Engine(model, tokenizer, image_processor, settings)
        _check(engine, load_8bit or load_4bit)
        self.served = ServedModel(
            name,
            engine,
            infer_template(name, model.config),
            limits,
            UrlFetcher(url_hosts, limits.max_bytes),
        )

    @property
    def is_healthy(self) -> bool:
        return self.served.engine.is_alive

    def stop(self) -> None:
        super().stop()
        self.served.engine.close()

    async def stream(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """One frame per token with all text so far, and a last one (contract: serve.md 2.2, 2.3, 3)."""
        prompt = params["prompt"]
        try:
            request = await self.served.take_in(generation_request, params, self.served)
            async with ReplyStream(self.served.engine, request) as events:
                async for event in events:
                    if event.error is not None:
                        raise event.error
                    if event.finish is None:
                        yield wire.frame(prompt + whole_words(event.text[: event.safe_length]))
                    else:
                        extra = {"usage": event.usage._asdict()} if wire.wants_details(params) else {}
                        yield wire.frame(prompt + event.text, **extra)
        except ContextFullError as error:
            logger.info("A prompt is too long: %s", error)
            yield wire.frame(prompt + CONTEXT_FULL)


def _check(engine: Engine, is_quantised: bool) -> None:
    """
    Raises:
        RequestError: the model cannot run here, most often in 4 or 8 bits with a bitsandbytes that lacks this device.
    """
    try:
        engine.warm_up()
    except Exception as error:
        engine.close()
        remedy = "update bitsandbytes (extra 'quant'), or leave out --load-4bit and --load-8bit" if is_quantised else ""
        raise RequestError(
            f"the model is loaded but cannot run on this machine: {error}{'; ' if remedy else ''}{remedy}"
        ) from error


def default_cache_bytes(model: PreTrainedModel) -> int:
    """Room for keys and values: four fifths of a GPU's free memory, else a quarter of the free main memory."""
    if model.device.type == "cuda":
        free = sum(torch.cuda.mem_get_info(i)[0] for i in {p.device.index for p in model.parameters()})
        return int(free * 0.8)
    import psutil

    return min(psutil.virtual_memory().available // 4, 8 * GIB)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_worker_arguments(parser)
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--device", type=str, default="cuda", help="cuda, mps or cpu; without CUDA the CPU is used")
    parser.add_argument("--multi-modal", action="store_true", help="accepted for old scripts: the model says it itself")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true", help="accepted: the engine has its own")
    add_connector_arguments(parser)
    parser.add_argument("--cache-gb", type=float, default=None, help="GiB for keys and values; default: by free memory")
    parser.add_argument("--picture-cache-gb", type=float, default=0.25, help="GiB for encoded pictures")
    parser.add_argument("--prefill-chunk", type=int, default=None, help="prompt tokens read between two decoded tokens")
    parser.add_argument("--max-images", type=int, default=ImageLimits.max_images, help="pictures per request")
    parser.add_argument("--max-image-mb", type=float, default=ImageLimits.max_bytes / 2**20, help="of one file")
    parser.add_argument("--max-image-pixels", type=int, default=ImageLimits.max_pixels, help="width x height")
    parser.add_argument(
        "--allow-url-hosts",
        type=str,
        default="",
        help="comma separated hosts from which pictures may be fetched that clients name (default: none)",
    )
    parser.add_argument("--api-key", type=str, default=None, help=f"for /v1 (or the variable {API_KEY_VARIABLE})")
    return parser


def create_app(worker: ModelWorker, max_body_bytes: int | None = None, api_key: str | None = None) -> Any:
    """The worker's web application: upstream's wire, the OpenAI API, details, anchors, metrics."""
    from llava.serve.worker.extras import extras_router
    from llava.serve.worker.openai_api import add_openai_api

    app = create_worker_app(worker, max_body_bytes=max_body_bytes, extra_routers=[extras_router(worker.served)])
    add_openai_api(app, worker, api_key)
    return app


def main() -> None:
    require_serving()
    from llava.serve.access import parse_hosts, read_secret

    args = build_parser().parse_args()
    worker_id = new_worker_id()
    secret = read_secret(args.secret_file)
    log = build_logger("model_worker", f"model_worker_{worker_id}.log")
    log.info("args: %s", {**vars(args), "api_key": "set" if args.api_key else None})
    if args.multi_modal:
        log.warning("--multi-modal is not needed: whether a model takes pictures stands in its configuration.")
    for name in ("limit_model_concurrency", "max_waiting", "max_images", "max_image_pixels"):
        if getattr(args, name) < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be 1 or more")
    for name in ("cache_gb", "max_image_mb", "prefill_chunk"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise RequestError(f"--{name.replace('_', '-')} must be more than 0")
    if not 0 <= args.picture_cache_gb < math.inf:
        raise RequestError("--picture-cache-gb must be 0 or more")
    check_port(args.host, args.port)  # now, not when a large model has been loaded
    worker = ModelWorker(
        args.controller_address,
        args.worker_address,
        worker_id,
        args.no_register,
        args.model_path,
        args.model_base,
        args.model_name,
        args.load_8bit,
        args.load_4bit,
        args.device,
        args.use_flash_attn,
        max_rows=args.limit_model_concurrency,
        max_waiting=args.max_waiting,
        cache_gb=args.cache_gb,
        picture_cache_gb=args.picture_cache_gb,
        prefill_chunk=args.prefill_chunk,
        limits=ImageLimits(args.max_images, int(args.max_image_mb * 2**20), args.max_image_pixels),
        url_hosts=parse_hosts(args.allow_url_hosts),
        secret=secret,
        overrides=connector_overrides(args),
    )
    app = create_app(worker, args.max_request_mb * 2**20, args.api_key or os.environ.get(API_KEY_VARIABLE))
    run_server(app, args.host, args.port)


if __name__ == "__main__":
    run_program(main)
