"""Prompt templates and the running conversation.

The strings in this file belong to released checkpoints: changing a space changes the model.
"""

import base64
import dataclasses
import io
from enum import Enum, auto
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.images import CLIP_BACKGROUND, expand2square


class SeparatorStyle(Enum):
    """How a template joins the turns of a conversation."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


def images_of(content: Any) -> list:
    """The PIL images of a message's content: none of a text, one or several of a tuple."""
    if not isinstance(content, tuple):
        return []
    return list(content[1]) if isinstance(content[1], list) else [content[1]]


@dataclasses.dataclass
class Conversation:
    """A prompt template together with the messages said so far.

    A message is ``[role, content]``. Content is a string, ``None`` (a slot to be generated; an empty string counts as
    one too) or a tuple ``(text, PIL image, image_process_mode)``, or with a list of PIL images (the text then
    has one ``<image>`` for each; in the first message they are put in front). Messages before ``offset`` are
    examples that belong to the template and are not shown to the user.
    """

    system: str
    roles: list[str]
    messages: list[list[Any]]
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """The conversation as one string, ready for the tokenizer.

        Raises:
            AssertionError: LLAMA_2 style and the first message is empty or not spoken by ``roles[0]``.
            ValueError: unknown separator style.
        """
        turns = self._texts()
        if self.sep_style == SeparatorStyle.SINGLE:
            return self._join_labelled(turns, self.sep, self.sep)
        if self.sep_style == SeparatorStyle.TWO:
            return self._join_labelled(turns, self.sep, self.sep2)
        if self.sep_style == SeparatorStyle.MPT:
            return self.system + self.sep + "".join(role + text + self.sep if text else role for role, text in turns)
        if self.sep_style == SeparatorStyle.LLAMA_2:
            return self._join_llama_2(turns)
        if self.sep_style == SeparatorStyle.PLAIN:
            # Training ends every caption with `sep`, so a missing `sep2` means the same separator.
            seps = (self.sep, self.sep if self.sep2 is None else self.sep2)
            return self.system + "".join(text + seps[i % 2] for i, (_, text) in enumerate(turns) if text)
        raise ValueError(f"Unknown separator style {self.sep_style!r}; use one of {list(SeparatorStyle)}.")

    def _texts(self) -> list[tuple[str, str | None]]:
        """(role, text) of every message; images at the very start are announced by the template's image marker."""
        turns = [(role, content[0] if isinstance(content, tuple) else content) for role, content in self.messages]
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return turns
        role, text = turns[0]
        text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        count = len(images_of(self.messages[0][1]))
        if "mmtag" in self.version:
            head = [(self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>" * count), (self.roles[1], "Received.")]
            return [*head, (role, text), *turns[1:]]
        return [(role, f"{DEFAULT_IMAGE_TOKEN}\n" * count + text), *turns[1:]]

    def _join_labelled(self, turns: list[tuple[str, str | None]], even_sep: str, odd_sep: str | None) -> str:
        begins_bare = "vlora" in self.version and not self.system
        prompt = "" if begins_bare else self.system + even_sep
        for i, (role, text) in enumerate(turns):
            prompt += f"{role}: {text}{odd_sep if i % 2 else even_sep}" if text else f"{role}:"
        return prompt

    def _join_llama_2(self, turns: list[tuple[str, str | None]]) -> str:
        prompt = ""
        for i, (role, text) in enumerate(turns):
            if i == 0:
                if not text:
                    raise AssertionError("A Llama-2 style conversation needs a first message; append the user's first.")
                if role != self.roles[0]:
                    raise AssertionError(f"A Llama-2 style conversation starts with {self.roles[0]!r}, not {role!r}.")
                if self.system:
                    text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            if not text:
                continue
            prompt += f" {text} {self.sep2}" if i % 2 else f"{self.sep}[INST] {text} [/INST]"
        return prompt.removeprefix(self.sep)  # the tokenizer adds the first <s> itself

    def append_message(self, role: str, message: Any) -> None:
        """Add ``[role, message]`` at the end; ``None`` opens a slot for the answer."""
        self.messages.append([role, message])

    def process_image(
        self,
        image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ):
        """Prepare an image for the model or the chat window.

        Args:
            image: PIL image of any mode; it is converted to RGB.
            image_process_mode: ``Pad`` (square canvas), ``Resize`` (336 x 336), ``Default`` or ``Crop`` (unchanged).
            return_pil: return the PIL image instead of the base64 text of the encoded file.
            image_format: file format of the base64 text.
            max_len: a longer side (pixels) above this is scaled down ...
            min_len: ... so that the shorter side is at most this many pixels.

        Raises:
            ValueError: unknown mode.
        """
        image = image.convert("RGB")
        if image_process_mode == "Pad":
            image = expand2square(image, CLIP_BACKGROUND)
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise ValueError(
                f"Invalid image_process_mode: {image_process_mode}. Use one of Pad, Resize, Default, Crop."
            )
        longest, shortest = max(image.size), min(image.size)
        if longest > max_len:
            aspect = longest / shortest
            # A line of 2000 x 1 pixels keeps one pixel, not none.
            short = max(1, int(min(max_len / aspect, min_len, shortest)))
            long = min(max_len, int(short * aspect))
            width, height = image.size
            image = image.resize((short, long) if height > width else (long, short))
        if return_pil:
            return image
        buffer = io.BytesIO()
        image.save(buffer, format=image_format)
        return base64.b64encode(buffer.getvalue()).decode()

    def get_images(self, return_pil: bool = False) -> list:
        """The processed images of the user's messages after ``offset``, as base64 PNG text or as PIL images."""
        return [
            self.process_image(image, content[2], return_pil=return_pil)
            for _, content in self.messages[self.offset :: 2]
            for image in images_of(content)
        ]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """``[[user, assistant], ...]`` for a chat window; images become inline JPEG ``<img>`` elements."""
        pairs: list[list[str | None]] = []
        for i, (_, content) in enumerate(self.messages[self.offset :]):
            if i % 2:
                pairs[-1][1] = content
                continue
            if isinstance(content, tuple):
                encoded = [self.process_image(image, "Default", image_format="JPEG") for image in images_of(content)]
                images = [f'<img src="data:image/jpeg;base64,{data}" alt="user upload image" />' for data in encoded]
                content = "".join(images) + content[0].replace(DEFAULT_IMAGE_TOKEN, "").strip()
            pairs.append([content, None])
        return pairs

    def copy(self) -> "Conversation":
        """A new conversation with copied message lists and shared contents; ``skip_next`` starts as False."""
        messages = [[role, content] for role, content in self.messages]
        return dataclasses.replace(self, messages=messages, skip_next=False)

    def dict(self) -> dict[str, Any]:
        """The fields that are logged; images are dropped from the messages."""
        messages = [[role, content[0] if isinstance(content, tuple) else content] for role, content in self.messages]
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": messages,
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_MMTAG = (  # no space after "language.": released models were trained with it so
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_LLAMA_2 = (  # two spaces after "safe.": as in Meta's prompt
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_MPT = (
    "<|im_start|>system\n"
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)
_DIRECT = "<|im_start|>system\nAnswer the questions."

_CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")


def _template(system: str, roles: tuple[str, str], style: SeparatorStyle, sep: str, sep2: str | None, version: str):
    return Conversation(
        system=system, roles=roles, messages=[], offset=0, sep_style=style, sep=sep, sep2=sep2, version=version
    )


def _human(system: str, version: str) -> Conversation:
    return _template(system, ("Human", "Assistant"), SeparatorStyle.SINGLE, "###", None, version)


def _vicuna(system: str, version: str) -> Conversation:
    return _template(system, ("USER", "ASSISTANT"), SeparatorStyle.TWO, " ", "</s>", version)


def _llama_2(system: str, sep: str) -> Conversation:
    return _template(system, ("USER", "ASSISTANT"), SeparatorStyle.LLAMA_2, sep, "</s>", "llama_v2")


def _chatml(system: str) -> Conversation:
    return _template(system, _CHATML_ROLES, SeparatorStyle.MPT, "<|im_end|>", None, "mpt")


# Upstream's `default`/`v0` carries a few-shot pair for the text-only Vicuna v0 of early 2023; here it is the plain
# `###` format: the one deliberate deviation (docs/compatibility.md).
conv_vicuna_v0 = _human(_CURIOUS_HUMAN, "Unknown")
conv_vicuna_v1 = _vicuna(_CURIOUS_USER, "v1")
conv_llama_2 = _llama_2(_LLAMA_2, "<s>")
conv_llava_llama_2 = _llama_2(_VISION, "<s>")
conv_mistral_instruct = _llama_2("", "")
conv_mpt = _chatml(_MPT)
conv_chatml_direct = _chatml(_DIRECT)
conv_llava_plain = _template("", ("", ""), SeparatorStyle.PLAIN, "\n", None, "Unknown")
conv_llava_v0 = _human(_CURIOUS_HUMAN, "Unknown")
conv_llava_v0_mmtag = _human(_MMTAG, "v0_mmtag")
conv_llava_v1 = _vicuna(_CURIOUS_HUMAN, "v1")
conv_llava_v1_mmtag = _vicuna(_MMTAG, "v1_mmtag")
conv_vlora = _vicuna("", "v1_vlora")  # of the published VLoRA

# `--version` replaces this; read it as an attribute of the module, at the time of use.
default_conversation = conv_vicuna_v1

conv_templates = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "chatml_direct": conv_chatml_direct,
    "mistral_direct": conv_chatml_direct,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llava_v0": conv_llava_v0,
    "v0_mmtag": conv_llava_v0_mmtag,
    "llava_v1": conv_llava_v1,
    "v1_mmtag": conv_llava_v1_mmtag,
    "llava_llama_2": conv_llava_llama_2,
    "mpt": conv_mpt,
    "vlora": conv_vlora,
}
