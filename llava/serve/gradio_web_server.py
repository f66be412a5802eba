"""The web demo: chat with models about pictures (contract: serve.md 7).

    python -m llava.serve.gradio_web_server --controller http://localhost:21001 --model-list-mode reload

Needs a controller and at least one worker (`bash scripts/demo.sh` starts all three). Import `build_demo` to put the
page into a program of your own.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llava.extras import require_extra
from llava.program import RequestError, run_program
from llava.utils import build_logger

if TYPE_CHECKING:
    import gradio


def build_demo(*args: Any, **options: Any) -> "gradio.Blocks":
    """The page as `gradio.Blocks`; arguments as `llava.serve.page.layout.build_demo`, which this imports when called.

    Raises:
        ImportError: the packages of the extra `serve` are missing.
    """
    require_extra("gradio", "serve")
    require_extra("httpx", "serve")
    from llava.serve.page import layout

    return layout.build_demo(*args, **options)


def get_model_list(controller_url: str) -> list[str]:
    """Names of the models behind a controller, sorted, with upstream's favourites in front.

    Raises:
        RequestError: the controller cannot be reached.
    """
    require_extra("httpx", "serve")
    from llava.serve.page.client import ModelClient, ServerError

    try:
        return asyncio.run(ModelClient(controller_url).list_models())
    except ServerError as error:
        raise RequestError(
            f"{error}: start the controller first (python -m llava.serve.controller), or name it with --controller-url"
        ) from error


@contextmanager
def uploads_folder() -> Iterator[None]:
    """Gradio keeps what visitors send in a folder of this process, which is gone when it ends, also by SIGTERM.

    Gradio's own folder belongs to whoever used it first on this machine, and keeps the files of servers that were
    killed. A folder that the operator names (`GRADIO_TEMP_DIR`) is left alone.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="llava-uploads-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The web demo of LLaVA.")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen at; 127.0.0.1 (the default) is this machine only, 0.0.0.0 is everyone who can reach it",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--controller-url", type=str, default="http://localhost:21001")
    parser.add_argument("--concurrency-count", type=int, default=16, help="answers at the same time")
    parser.add_argument(
        "--model-list-mode",
        type=str,
        default="once",
        choices=["once", "reload"],
        help="ask the controller for its models once at the start, or at every page load",
    )
    parser.add_argument("--share", action="store_true", help="a public address through Gradio's relay")
    parser.add_argument("--moderate", action="store_true", help="refuse texts that OpenAI's moderation flags")
    parser.add_argument("--embed", action="store_true", help="without header, terms and licence")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    require_extra("gradio", "serve")
    require_extra("httpx", "serve")
    with uploads_folder():  # before Gradio is imported
        serve(args)


def serve(args: argparse.Namespace) -> None:
    """Build the page and serve it until interrupted.

    Raises:
        RequestError: there is no controller.
    """
    # Before the log file is opened, which takes up the loggers that exist then.
    from llava.serve.page import layout
    from llava.serve.page.style import launch_options

    os.umask(0o077)  # logs and uploads are the visitors' own: for nobody else on this machine
    logger = build_logger("gradio_web_server", "gradio_web_server.log")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for every question to the controller
    logger.info("args: %s", args)
    models = None
    if args.model_list_mode == "once":
        models = get_model_list(args.controller_url)
        logger.info("Models: %s", models)
        if not models:
            logger.warning("the controller knows no model: start a worker first, or use --model-list-mode reload")
    demo = layout.build_demo(
        controller_url=args.controller_url,
        models=models,
        embed=args.embed,
        concurrency_count=args.concurrency_count,
        moderate=args.moderate,
    )
    demo.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options())


if __name__ == "__main__":
    run_program(main)
