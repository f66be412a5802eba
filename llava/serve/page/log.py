"""What the demo keeps of chats: one JSON line per reply and vote, and the pictures (contract: serve.md 9).

Conversations are private, so files are readable by their owner only (S-18); `LLAVA_LOGDIR` says where they go.
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


def picture_hash(picture: Image.Image) -> str:
    """MD5 of the raw pixel bytes: a name for a file, no protection."""
    return hashlib.md5(picture.tobytes(), usedforsecurity=False).hexdigest()


class ChatLog:
    """Appends to `<folder>/YYYY-MM-DD-conv.json` (local date, JSON lines); safe for several threads.

    A full disk ends no chat: what cannot be written is reported in the program's own log.

    Args:
        folder: where everything goes; made if missing.
    """

    def __init__(self, folder: str = LOGDIR) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def chat(
        self, model: str, conversation: Conversation, started: float, finished: float, images: list[str], ip: str
    ) -> None:
        """One reply that was given; times in Unix seconds, `images` the hashes of the pictures."""
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
        """A visitor's opinion: `upvote`, `downvote` or `flag`."""
        self._append(
            {
                "tstamp": round(time.time(), 4),
                "type": kind,
                "model": model,
                "state": conversation.dict(),
                "ip": ip,
            }
        )

    def store_picture(self, picture: Image.Image) -> str:
        """Keep a processed picture as `serve_images/YYYY-MM-DD/<md5>.jpg`, once per day; gives its hash."""
        name = picture_hash(picture)
        path = os.path.join(self.folder, "serve_images", _today(), f"{name}.jpg")
        try:
            if not os.path.exists(path):
                os.makedirs(os.path.join(self.folder, "serve_images"), mode=FOLDER_MODE, exist_ok=True)
                os.makedirs(os.path.dirname(path), mode=FOLDER_MODE, exist_ok=True)
                write_atomically(path, lambda temporary: _save_private(picture, temporary))
        except OSError as error:
            logger.error("A picture could not be stored: %s", error)
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


def _save_private(picture: Image.Image, path: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
        picture.save(file, format="JPEG")


def _today() -> str:
    return time.strftime("%Y-%m-%d")
