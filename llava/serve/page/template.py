"""The template of a chat in the demo (contract: serve.md 7.2, point 2)."""

from llava.conversation import Conversation, conv_templates


def template_by_name(model_name: str) -> str:
    """The template that a model of this name was most likely trained with; any case, always an existing one (S-12).

    Upstream names two templates that it lacks: OpenOrca's Mistral speaks ChatML, as Hermes does, and MPT has one
    template for chats with and without pictures.
    """
    name = model_name.lower()
    with_tags = "mmtag" in name or ("plain" in name and "finetune" not in name)
    if "llava" not in name:
        return "mpt" if "mpt" in name else "llama_2" if "llama-2" in name else "vicuna_v1"
    if "llama-2" in name:
        return "llava_llama_2"
    if "mistral" in name or "mixtral" in name:
        return "chatml_direct" if "orca" in name or "hermes" in name else "mistral_instruct"
    if "llava-v1.6-34b" in name:
        return "chatml_direct"
    if "v1" in name:
        return "v1_mmtag" if with_tags else "llava_v1"
    if "mpt" in name:
        return "mpt"
    return "v0_mmtag" if with_tags else "llava_v0"


def choose_template(model_name: str, stated: str | None) -> str:
    """The template that the worker states, if this package knows it; else by the model's name."""
    return stated if stated in conv_templates else template_by_name(model_name)


def begin_in_template(template: str, user_turn: object) -> Conversation:
    """A new conversation whose first user turn is given and whose answer is open."""
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], user_turn)
    conversation.append_message(conversation.roles[1], None)
    return conversation
