"""The demo's records of chats: one JSON line per reply and vote, and the images.

Chats are private, so files are readable by their owner only. `LLAVA_LOGDIR` sets the folder.
"""

import hashlib
import json
import logging
import os
import threading
import time
from typing import Any

from PIL import Image

from llava.constants import LOGDIR
from llava.conversation import Conversation
from llava.files import write_atomically

logger = logging.getLogger(__name__)

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def image_hash(image: Image.Image) -> str:
    """MD5 of the raw pixel bytes, as a file name; no protection."""
    return hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()


class ChatLog:
    """Appends to `<folder>/YYYY-MM-DD-conv.json` (local date, JSON lines); safe for several threads.

    A full disk does not end chats: failures are logged.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: str = LOGDIR) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def chat(
        self, model: str, conversation: Conversation, started: float, finished: float, images: list[str], ip: str
    ) -> None:
        """Record a reply; times in Unix seconds, `images` are hashes."""
        self._append(
            {
                "tstamp": round(finished, 4),
                "type": "chat",
                "model": model,
                "start": round(started, 4),
                "finish": round(finished, 4),
                "state": conversation.dict(),
                "images": images,
                "ip": ip,
            }
        )

    def vote(self, kind: str, model: str, conversation: Conversation, ip: str) -> None:
        """Record a vote: `upvote`, `downvote` or `flag`."""
        self._append(
            {"tstamp": round(time.time(), 4), "type": kind, "model": model, "state": conversation.dict(), "ip": ip}
        )

    def store_image(self, image: Image.Image) -> str:
        """Store a processed image as `serve_images/YYYY-MM-DD/<md5>.jpg`, once per day; returns its hash."""
        name = image_hash(image)
        path = os.path.join(self.folder, "serve_images", _today(), f"{name}.jpg")
        try:
            if not os.path.exists(path):
                os.makedirs(os.path.join(self.folder, "serve_images"), mode=FOLDER_MODE, exist_ok=True)
                os.makedirs(os.path.dirname(path), mode=FOLDER_MODE, exist_ok=True)
                write_atomically(path, lambda temporary: _save_private(image, temporary))
        except OSError as error:
            logger.error("An image could not be stored: %s", error)
        return name

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._write_line(record)
        except OSError as error:
            logger.error("A line of the chat log could not be written: %s", error)

    def _write_line(self, record: dict[str, Any]) -> None:
        os.makedirs(self.folder, exist_ok=True)
        line = (json.dumps(record) + "\n").encode()
        path = os.path.join(self.folder, f"{_today()}-conv.json")
        with self._lock:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE)
            try:
                os.write(file, line)  # one call: several processes may share the file
            finally:
                os.close(file)


def _save_private(image: Image.Image, path: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
        image.save(file, format="JPEG")


def _today() -> str:
    return time.strftime("%Y-%m-%d")
