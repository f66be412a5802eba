"""Requests that the page's server refuses before Gradio sees them: links to fetch, and events that are too large.

Gradio would download a file of any size that an event names by a link. The page itself never sends links: it uploads
files.
"""

import json

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from llava.serve.http_layer import BodyLimit, replay

MAX_EVENT_BYTES = 2**20  # texts and file names
LINKS = ("http://", "https://")


class PageGuard:
    """ASGI middleware in front of Gradio. File uploads pass; Gradio limits them itself (`max_file_size`)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._limited = BodyLimit(self._pass_without_links, max_bytes=MAX_EVENT_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_event = scope["type"] == "http" and scope["method"] == "POST" and not scope["path"].endswith("/upload")
        await (self._limited if is_event else self.app)(scope, receive, send)

    async def _pass_without_links(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        if names_a_link(body):
            await JSONResponse({"message": "files are uploaded, not fetched"}, status_code=403)(scope, receive, send)
        else:
            await self.app(scope, replay(body, receive), send)


def names_a_link(body: bytes) -> bool:
    """Whether the JSON of an event contains a file (an object with a `path`) on another server."""
    try:
        left = [json.loads(body)]
    except ValueError:
        return False  # Gradio reports the error
    except RecursionError:
        return True  # too deep to check
    while left:
        value = left.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and path.strip().lower().startswith(LINKS):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False
