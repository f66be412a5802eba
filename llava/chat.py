"""The text side of a conversation with a picture: which template, and how a picture is announced in the prompt.

Strings only; shared by the command line chat and the answer generators (contract: eval.md 1 and 1.6).
"""

from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.conversation import Conversation, conv_templates
from llava.program import RequestError

# Part of the lower-cased model name -> template; the first match wins.
NAME_RULES = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)
FALLBACK_TEMPLATE = "llava_v0"


def infer_template(model_name: str, config: Any = None) -> str:
    """The template a model was trained with: `config.conv_mode` if the checkpoint says it, else by the model's name."""
    stated = getattr(config, "conv_mode", None)
    if stated:
        return stated
    name = model_name.lower()
    return next((template for part, template in NAME_RULES if part in name), FALLBACK_TEMPLATE)


def choose_template(requested: str | None, model_name: str, config: Any = None) -> str:
    """The template asked for with `--conv-mode`, else the inferred one; a difference is printed as a warning."""
    inferred = infer_template(model_name, config)
    if requested is None or requested == inferred:
        return inferred
    print(
        f"[WARNING] the auto inferred conversation mode is {inferred}, while `--conv-mode` is {requested}, "
        f"using {requested}"
    )
    return requested


def check_template(template: str | None) -> None:
    """Refuse an unknown `--conv-mode` before a model is loaded for it; None means "infer".

    Raises:
        RequestError: no such template; names those that exist.
    """
    if template is not None and template not in conv_templates:
        known = ", ".join(sorted(conv_templates))
        raise RequestError(f"there is no conversation template '{template}'; choose --conv-mode from {known}")


def new_conversation(template: str) -> Conversation:
    """An empty conversation in a template.

    Raises:
        RequestError: no such template.
    """
    check_template(template)
    return conv_templates[template].copy()


def image_marker(config: Any) -> str:
    """What stands for one picture in a prompt: `<image>`, between start and end tokens if the model has them."""
    if getattr(config, "mm_use_im_start_end", False):
        return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    return DEFAULT_IMAGE_TOKEN


def announce_images(text: str, config: Any, count: int = 1) -> str:
    """The text with one line in front of it for each picture."""
    return f"{image_marker(config)}\n" * count + text


def place_images_in_query(query: str, config: Any, count: int) -> str:
    """A query with a marker for every `<image-placeholder>`; without any, the pictures are announced in front (E-6)."""
    if IMAGE_PLACEHOLDER in query:
        return query.replace(IMAGE_PLACEHOLDER, image_marker(config))
    return announce_images(query, config, count)


def without_markers(text: str) -> str:
    """Text that nobody may smuggle a picture's slot into: what a user types, or a model answers, in a chat."""
    while DEFAULT_IMAGE_TOKEN in text:  # again: what is left may have closed up to a marker
        text = text.replace(DEFAULT_IMAGE_TOKEN, "")
    return text


def build_prompt(message: str, template: str) -> str:
    """A single user message in a template, with the assistant's turn open."""
    conversation = new_conversation(template)
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def check_markers(prompt: str, num_images: int) -> None:
    """Every `<image>` in a prompt needs a picture, and every picture an `<image>`.

    Raises:
        RequestError: the numbers differ.
    """
    num_markers = prompt.count(DEFAULT_IMAGE_TOKEN)
    if num_markers != num_images:
        raise RequestError(
            f"the prompt has {num_markers} image marker(s) for {num_images} picture(s); {DEFAULT_IMAGE_TOKEN} must not "
            f"stand in the text, and {IMAGE_PLACEHOLDER}, where it is used, must stand once for each picture"
        )
