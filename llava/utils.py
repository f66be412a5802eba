"""Logging, content moderation and small helpers of the servers."""

import logging
import logging.handlers
import os
import sys

from llava.constants import LOGDIR

server_error_msg = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
moderation_msg = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."

MODERATION_URL = "https://api.openai.com/v1/moderations"

# The one log file of this process; None until the first logger is built (part of the public interface).
handler: logging.Handler | None = None


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """A logger that writes to the console and to ``<LOGDIR>/<logger_filename>``; prints are logged from now on.

    The first call opens the file (rotated daily at midnight UTC) and attaches it to all loggers that exist; later
    calls reuse that file, whatever name they give. Meant to be called when a server starts, not at import.
    """
    global handler
    formatter = logging.Formatter(
        fmt="%(asctime)s | %(levelname)s | %(name)s | %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger().handlers[0].setFormatter(formatter)

    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    sys.stdout = _redirect(sys.stdout, "stdout", logging.INFO)
    sys.stderr = _redirect(sys.stderr, "stderr", logging.ERROR)

    if handler is None:
        os.makedirs(LOGDIR, exist_ok=True)
        path = os.path.join(LOGDIR, logger_filename)
        handler = logging.handlers.TimedRotatingFileHandler(path, when="MIDNIGHT", utc=True, encoding="UTF-8")
        handler.setFormatter(formatter)
        os.chmod(path, 0o640)  # logs hold prompts: not for every user of the machine
        for _, item in sorted(logging.root.manager.loggerDict.items()):  # sorted: a parent comes before its children
            if isinstance(item, logging.Logger):
                _attach(item, handler)
    _attach(logger, handler)
    return logger


def _redirect(stream, name: str, level: int) -> "StreamToLogger":
    if isinstance(stream, StreamToLogger):
        return stream
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    return StreamToLogger(logger, level)


def _attach(logger: logging.Logger, file_handler: logging.Handler) -> None:
    """Attach unless a line of this logger already reaches the file through a parent (it would be written twice)."""
    node: logging.Logger | None = logger
    while node is not None:
        if file_handler in node.handlers:
            return
        node = node.parent if node.propagate else None
    logger.addHandler(file_handler)


class StreamToLogger:
    """A file-like object that logs complete lines; an unfinished line waits for its newline or ``flush()``."""

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO):
        self.terminal = sys.stdout
        self.logger = logger
        self.log_level = log_level
        self.linebuf = ""

    def __getattr__(self, attr: str):
        if attr == "terminal":  # not set yet (copy, pickle): do not look it up on itself
            raise AttributeError(attr)
        return getattr(self.terminal, attr)

    def write(self, buf: str) -> None:
        *lines, self.linebuf = (self.linebuf + buf).split("\n")
        for line in lines:
            self.logger.log(self.log_level, line.rstrip())

    def flush(self) -> None:
        if self.linebuf:
            self.logger.log(self.log_level, self.linebuf.rstrip())
        self.linebuf = ""


def disable_torch_init() -> None:
    """Kept for old scripts. Upstream turned weight initialisation off for the whole process; this does nothing.

    Loading with transformers already skips needless initialisation.
    """


def violates_moderation(text: str) -> bool:
    """Whether OpenAI's moderation endpoint flags the text (key from ``OPENAI_API_KEY``, 5 seconds at most).

    A missing key, a network failure or an unexpected reply counts as "not flagged" and is logged as a warning.
    """
    import requests

    logger = logging.getLogger(__name__)
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        logger.warning("Moderation is skipped: set OPENAI_API_KEY, or start the server without --moderate.")
        return False
    try:
        reply = requests.post(
            MODERATION_URL,
            headers={"Authorization": f"Bearer {key}"},
            json={"input": text.replace("\n", "")},
            timeout=5,
        )
        return bool(reply.json()["results"][0]["flagged"])
    except (requests.exceptions.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
        logger.warning("Moderation failed, the text passes unchecked: %s: %s", type(error).__name__, error)
        return False


def pretty_print_semaphore(semaphore) -> str:
    """``Semaphore(value=<int>, locked=<bool>)``, or ``"None"`` without one."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"
