"""The text of a conversation about images: its template, its image markers and its prompt.

Strings only, without torch; shared by serving, the command line chat and the answer generators.
"""

import logging
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.program import RequestError

logger = logging.getLogger(__name__)


def template_by_name(model_name: str, has_vision: bool = False) -> str:
    """The template that a model of this name was most likely trained with; ignores case and always exists.

    Hermes and OpenOrca are Mistral models that use ChatML.

    Args:
        has_vision: the model is known to take images; otherwise a name without "llava" belongs to a language model.
    """
    name = model_name.lower()
    with_tags = "mmtag" in name or ("plain" in name and "finetune" not in name)
    if "llava" not in name and not has_vision:
        return "mpt" if "mpt" in name else "llama_2" if "llama-2" in name else "vicuna_v1"
    if "llama-2" in name:
        return "llava_llama_2"
    if "mistral" in name or "mixtral" in name:
        return "chatml_direct" if "orca" in name or "hermes" in name else "mistral_instruct"
    if "v1.6-34b" in name:
        return "chatml_direct"
    if "v1" in name:
        return "v1_mmtag" if with_tags else "llava_v1"
    if "mpt" in name:
        return "mpt"
    return "v0_mmtag" if with_tags else "llava_v0"


def infer_template(model_name: str, config: Any = None) -> str:
    """The template a model was trained with: `config.conv_mode` if the checkpoint records one, else by its name.

    A recorded template that this package does not have is logged, and the name decides.
    """
    recorded = getattr(config, "conv_mode", None)
    if recorded in conv_templates:
        return recorded
    inferred = template_by_name(model_name, has_vision=getattr(config, "mm_vision_tower", None) is not None)
    if recorded:
        logger.warning("%s was trained with the unknown template '%s'; using %s.", model_name, recorded, inferred)
    return inferred


def choose_template(requested: str | None, model_name: str, config: Any = None) -> str:
    """The template requested with `--conv-mode`, else the inferred one; a difference is printed as a warning."""
    inferred = infer_template(model_name, config)
    if requested is None or requested == inferred:
        return inferred
    print(
        f"[WARNING] the auto inferred conversation mode is {inferred}, while `--conv-mode` is {requested}, "
        f"using {requested}"
    )
    return requested


def check_template(template: str | None) -> None:
    """Reject an unknown `--conv-mode` before a model is loaded for it; None means "infer".

    Raises:
        RequestError: no such template; lists the known ones.
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


def append_question(conversation: Conversation, question: Any) -> None:
    """Append a user turn and open the assistant's turn."""
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)


def stop_string(conversation: Conversation) -> str | None:
    """The separator that ends the assistant's turn in a prompt."""
    has_one_separator = conversation.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT)
    return conversation.sep if has_one_separator else conversation.sep2


def build_prompt(message: str, template: str) -> str:
    """A single user message in a template, with the assistant's turn open."""
    conversation = new_conversation(template)
    append_question(conversation, message)
    return conversation.get_prompt()


def image_marker(config: Any) -> str:
    """The marker of one image in a prompt: `<image>`, between start and end tokens if the model has them."""
    if getattr(config, "mm_use_im_start_end", False):
        return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    return DEFAULT_IMAGE_TOKEN


def announce_images(text: str, config: Any, count: int = 1) -> str:
    """The text, preceded by one marker line per image."""
    return f"{image_marker(config)}\n" * count + text


def place_images_in_query(query: str, config: Any, count: int) -> str:
    """Replace every `<image-placeholder>` by a marker; a query without any gets the markers in front."""
    if IMAGE_PLACEHOLDER in query:
        return query.replace(IMAGE_PLACEHOLDER, image_marker(config))
    return announce_images(query, config, count)


def without_markers(text: str) -> str:
    """The text without `<image>`: what users and models write must not claim an image."""
    while DEFAULT_IMAGE_TOKEN in text:  # removing one marker may join the parts of another
        text = text.replace(DEFAULT_IMAGE_TOKEN, "")
    return text


def check_markers(prompt: str, num_images: int) -> None:
    """Check that a prompt has one `<image>` per image.

    Raises:
        RequestError: the numbers differ.
    """
    num_markers = prompt.count(DEFAULT_IMAGE_TOKEN)
    if num_markers != num_images:
        raise RequestError(
            f"the prompt has {num_markers} image marker(s) for {num_images} image(s); {DEFAULT_IMAGE_TOKEN} must not "
            f"appear in the text, and {IMAGE_PLACEHOLDER}, where it is used, must appear once per image"
        )
