"""Chat with a model about one image, in the terminal.

python -m llava.serve.cli --model-path checkpoints/llava-v1.5-7b-acformer-145 --image-file image.jpg
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import contextlib

from llava.chat import (
    announce_images,
    append_question,
    check_template,
    choose_template,
    new_conversation,
    without_markers,
)
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.image_source import load_image
from llava.inference import (
    add_connector_arguments,
    connector_overrides,
    generate_reply,
    inference_options,
    prepare_images,
)
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.program import run_program

with contextlib.suppress(ImportError):  # missing on some systems
    import readline  # noqa: F401 - gives the prompt arrow keys and a history


def main(args: argparse.Namespace) -> None:
    """Load the model, then answer line by line until an empty line or the end of the input.

    Args:
        args: see `build_parser`.

    Raises:
        RequestError: unknown template, or a model that takes no images.
        ImageError: the image cannot be used.
    """
    check_template(args.conv_mode)
    image = load_image(args.image_file)
    from transformers import TextStreamer  # after what can fail at once

    from llava.model.builder import load_pretrained_model

    path = os.path.expanduser(args.model_path)
    base = None if args.model_base is None else os.path.expanduser(args.model_base)
    name = get_model_name_from_path(path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        *(path, base, name, args.load_8bit, args.load_4bit),
        **inference_options(args.device),
        **connector_overrides(args),
    )
    images, sizes = prepare_images([image], image_processor, model.config)
    conversation = new_conversation(choose_template(args.conv_mode, name, model.config))
    user, assistant = shown_roles(conversation, name)

    while text := read_line(f"{user}: "):
        if not conversation.messages:
            text = announce_images(text, model.config)
        append_question(conversation, text)
        prompt = conversation.get_prompt()
        print(f"{assistant}: ", end="", flush=True)
        reply = generate_reply(
            model,
            tokenizer,
            tokenizer_image_token(prompt, tokenizer, return_tensors="pt").unsqueeze(0),
            images,
            sizes,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        conversation.messages[-1][1] = without_markers(reply)
        if args.debug:
            print("\n", {"prompt": prompt, "outputs": reply}, "\n")
    print("exit...")


def shown_roles(conversation: Conversation, model_name: str) -> tuple[str, str]:
    """The names of the two speakers on the screen; the role texts of ChatML are control tokens."""
    if "mpt" in model_name.lower() or conversation.sep_style == SeparatorStyle.MPT:
        return "user", "assistant"
    return conversation.roles


def read_line(prompt: str) -> str:
    """What the user types, without image markers; empty for an empty line and at the end of the input."""
    while True:
        try:
            typed = input(prompt)
        except EOFError:
            return ""
        text = without_markers(typed)
        if text or not typed:
            if text != typed:
                print(f"({DEFAULT_IMAGE_TOKEN} is removed: the model sees the image anyway)")
            return text


def build_parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    parser = argparse.ArgumentParser(description="Chat with a model about one image.")
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-file", type=str, required=True, help="path, or http:// or https:// address")
    parser.add_argument("--device", type=str, default="cuda", help="without CUDA the CPU is used")
    parser.add_argument("--conv-mode", type=str, default=None, help="template; by default from the model")
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy decoding")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    add_connector_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show every prompt and reply")
    return parser


def chat() -> None:
    """Parse the flags and chat; Ctrl-C ends the chat like an empty line."""
    try:
        main(build_parser().parse_args())
    except KeyboardInterrupt:
        print("\nexit...")


if __name__ == "__main__":
    run_program(chat)
