"""Chats as HTML: everything that visitors or models write is escaped, then formatted with minimal markdown.

The chat box does not render markdown itself, because markdown can load images from other servers and contains HTML. It
also removes scripts and handlers, in addition to the escaping here.
"""

import html
import re
from typing import Any

from llava.chat import without_markers
from llava.serve.page.chat import Chat

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
BOLD = re.compile(r"\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*")


def to_html(text: str) -> str:
    """Text as safe HTML; code blocks, `code` and **bold** are formatted, everything else is literal."""
    # Split at code blocks first, so that nothing inside them is taken for markdown.
    parts = FENCE.split(text)
    return "".join(
        f"<pre><code>{html.escape(part)}</code></pre>" if i % 2 else _inline(part) for i, part in enumerate(parts)
    )


def _inline(text: str) -> str:
    parts = CODE.split(text)
    return "".join(
        f"<code>{html.escape(part)}</code>" if i % 2 else BOLD.sub(r"<strong>\1</strong>", html.escape(part))
        for i, part in enumerate(parts)
    )


def to_messages(chat: Chat) -> list[dict[str, Any]]:
    """The chat as message dicts for the chat box; the images of a turn precede its text."""
    conversation = chat.conversation
    messages: list[dict[str, Any]] = []
    for i, (_, content) in enumerate(conversation.messages):
        if i < conversation.offset:
            continue
        if (i - conversation.offset) % 2 == 0:
            text = content[0] if isinstance(content, tuple) else content
            messages += [{"role": "user", "content": {"path": path}} for path in chat.previews.get(i, [])]
            text = without_markers(text or "").strip()
            if text:
                messages.append({"role": "user", "content": to_html(text)})
        elif content is not None:
            messages.append({"role": "assistant", "content": to_html(content) + _lines_under(chat, i)})
    return messages


def _lines_under(chat: Chat, index: int) -> str:
    figures = chat.figures.get(index)
    lines = [chat.remarks.get(index, ""), figures.caption() if figures else ""]
    return "".join(f'<div class="reply-note">{html.escape(line)}</div>' for line in lines if line)


def sentence(error: Exception) -> str:
    """An error as a sentence in HTML."""
    text = str(error).rstrip(".")
    return html.escape(text[:1].upper() + text[1:], quote=False) + "."
