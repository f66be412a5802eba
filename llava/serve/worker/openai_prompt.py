"""From the messages of an OpenAI request to a prompt in the model's template, with its images."""

import re
from collections.abc import Sequence

from PIL import Image

from llava.chat import new_conversation, without_markers
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import SeparatorStyle
from llava.images import ImageError
from llava.program import RequestError
from llava.serve.engine.images import PreparedImage
from llava.serve.worker.openai_schema import ImagePart, Message
from llava.serve.worker.served_model import ServedModel

DATA_URI = re.compile(r"data:image/[a-z+.-]+(?:;[a-z]+=[^;,]*)*;base64,", re.IGNORECASE)
CHATML_SYSTEM = "<|im_start|>system\n"


def prompt_from_messages(messages: Sequence[Message], template: str) -> tuple[str, list[str]]:
    """The prompt with the assistant's turn open, and the image addresses in the order of their markers.

    The images of a message precede its text, as in training. `<image>` inside a text is removed, as it would claim an
    image.

    Raises:
        RequestError: no user message, roles that do not alternate, or an image in another message than the user's.
    """
    conversation = new_conversation(template)
    if any(_images(message) for message in messages if message.role != "user"):
        raise RequestError("only the user may send images")
    system = [_text(message) for message in messages if message.role in ("system", "developer")]
    if system:
        text = "\n".join(system)
        is_chatml = conversation.sep_style == SeparatorStyle.MPT
        conversation.system = CHATML_SYSTEM + text if is_chatml else text
    marker = f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>" if "mmtag" in conversation.version else DEFAULT_IMAGE_TOKEN
    urls: list[str] = []
    turns = [message for message in messages if message.role in ("user", "assistant")]
    for i, message in enumerate(turns):
        if message.role != ("user", "assistant")[i % 2]:
            raise RequestError("messages of user and assistant must take turns, the user first")
        images = _images(message)
        text = f"{marker}\n" * len(images) + _text(message)
        if not text.strip():
            raise RequestError(f"message {i + 1} is empty")
        urls += images
        conversation.append_message(conversation.roles[i % 2], text)
    if len(turns) % 2 == 0:
        raise RequestError("the last message must be the user's")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt(), urls


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return without_markers(message.content)
    return without_markers("\n".join(part.text for part in message.content if not isinstance(part, ImagePart)))


def _images(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return []
    return [part.image_url.url for part in message.content if isinstance(part, ImagePart)]


def load_images(urls: Sequence[str], served: ServedModel) -> tuple[PreparedImage, ...]:
    """Load images from `data:` URIs and allowed web addresses; may take seconds.

    Raises:
        RequestError, ImageError: too many, not allowed, or an image that cannot be used.
    """
    served.limits.check_count(len(urls))
    return tuple(served.engine.prepare(_load(url, served)) for url in urls)


def _load(url: str, served: ServedModel) -> Image.Image:
    found = DATA_URI.match(url)
    if found:
        return served.limits.decode_base64(url[found.end() :])
    if url[:5].lower() == "data:":
        raise ImageError("a data: URI must be data:image/...;base64, followed by the file")
    return served.limits.decode(served.fetcher.fetch(url))
