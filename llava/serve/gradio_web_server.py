"""The web demo: chat with models about images.

    python -m llava.serve.gradio_web_server --controller http://localhost:10000 --model-list-mode reload

Needs a controller and at least one worker (`bash scripts/demo.sh` starts all three). `build_demo` returns the page for
a program of your own.
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import asyncio
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llava.extras import require_extra
from llava.program import RequestError, run_program
from llava.serve.http_client import log_failures_only
from llava.utils import build_logger


def __getattr__(name: str) -> Any:
    """`build_demo`, as upstream's module has it; Gradio is imported on first access."""
    if name == "build_demo":
        require_serving()
        from llava.serve.page.layout import build_demo

        return build_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def require_serving() -> None:
    """Check for the packages of the page.

    Raises:
        ImportError: one is missing.
    """
    require_extra("gradio", "serve")
    require_extra("httpx", "serve")


def get_model_list(controller_url: str) -> list[str]:
    """Names of the models behind a controller, sorted, with upstream's favourites first.

    Raises:
        RequestError: the controller cannot be reached.
    """
    require_serving()
    from llava.serve.page.client import ModelClient, ServerError

    try:
        return asyncio.run(ModelClient(controller_url).list_models())
    except ServerError as error:
        raise RequestError(
            f"{error}: start the controller first (python -m llava.serve.controller), or name it with --controller-url"
        ) from error


@contextmanager
def uploads_folder() -> Iterator[None]:
    """A folder for the uploads of this process, deleted when it ends, also by SIGTERM.

    Gradio's default folder belongs to its first user on this machine, and keeps the files of killed servers. A folder
    that the operator sets (`GRADIO_TEMP_DIR`) is used as it is.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="llava-uploads-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield


def build_parser() -> argparse.ArgumentParser:
    """Flags of the page. None other may begin with `--controller`, which is used as an abbreviation."""
    parser = argparse.ArgumentParser(description="The web demo of LLaVA.")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen at; 127.0.0.1 (the default): this machine only, 0.0.0.0: everyone who can reach it",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--controller-url", type=str, default="http://localhost:21001")
    parser.add_argument("--concurrency-count", type=int, default=16, help="simultaneous answers")
    parser.add_argument(
        "--model-list-mode",
        type=str,
        default="once",
        choices=["once", "reload"],
        help="ask the controller for its models once, at the start, or at every page load",
    )
    parser.add_argument("--share", action="store_true", help="a public address through Gradio's relay")
    parser.add_argument("--moderate", action="store_true", help="refuse texts that OpenAI's moderation flags")
    parser.add_argument("--embed", action="store_true", help="omit header, terms and licence")
    return parser


def main() -> None:
    """Serve until interrupted.

    Raises:
        RequestError: there is no controller.
        ImportError: a package of the `serve` extra is missing.
    """
    args = build_parser().parse_args()
    require_serving()
    with uploads_folder():  # before Gradio is imported
        serve(args)


def serve(args: argparse.Namespace) -> None:
    """Build the page and serve it until interrupted.

    Raises:
        RequestError: there is no controller.
    """
    # The log file is attached to the loggers that exist when it is opened.
    from llava.serve.page.layout import build_demo
    from llava.serve.page.style import launch_options

    os.umask(0o077)  # logs and uploads are private
    logger = build_logger("gradio_web_server", "gradio_web_server.log")
    log_failures_only()
    logger.info("args: %s", args)
    models = None
    if args.model_list_mode == "once":
        models = get_model_list(args.controller_url)
        logger.info("Models: %s", models)
        if not models:
            logger.warning("the controller has no model: start a worker first, or use --model-list-mode reload")
    demo = build_demo(
        controller_url=args.controller_url,
        models=models,
        embed=args.embed,
        concurrency_count=args.concurrency_count,
        moderate=args.moderate,
    )
    demo.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options())


if __name__ == "__main__":
    run_program(main)
