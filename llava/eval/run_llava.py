"""Ask a model one question about one or several pictures (contract: eval.md 1.6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Sequence
from typing import Any

from PIL import Image

from llava.chat import build_prompt, check_template, choose_template, place_images_in_query
from llava.eval.answering.answerer import Answerer, AnswerOptions
from llava.eval.answering.arguments import add_decoding_arguments
from llava.image_source import load_image
from llava.inference import add_connector_arguments, connector_overrides
from llava.program import run_program

__all__ = ["eval_model", "image_parser", "load_image", "load_images"]


def image_parser(args: Any) -> list[str]:
    """The sources named by `args.image_file`, which is split at `args.sep`; an empty one does not split."""
    return args.image_file.split(args.sep) if args.sep else [args.image_file]


def load_images(image_files: Sequence[str]) -> list[Image.Image]:
    """RGB pictures from paths and web addresses.

    Raises:
        ImageError: one cannot be used; names it.
    """
    return [load_image(image_file) for image_file in image_files]


def eval_model(args: Any) -> None:
    """Print the reply to `args.query`; `args` is any object with the flags as attributes.

    Without `<image-placeholder>` in the query every picture is announced in front of it (E-6).

    Raises:
        RequestError: unknown template, or not one placeholder per picture.
        ImageError: a picture cannot be used.
    """
    check_template(args.conv_mode)
    pictures = load_images(image_parser(args))
    answerer = Answerer.open(args.model_path, args.model_base, **connector_overrides(args))
    config = answerer.model.config
    template = choose_template(args.conv_mode, answerer.name, config)
    prompt = build_prompt(place_images_in_query(args.query, config, len(pictures)), template)
    options = AnswerOptions(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    print(answerer.answer(prompt, pictures, options))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-file", type=str, required=True, help="paths or web addresses, joined by --sep")
    parser.add_argument("--query", type=str, required=True, help="may say <image-placeholder> where a picture goes")
    parser.add_argument("--conv-mode", type=str, default=None, help="template; by default from the model")
    parser.add_argument("--sep", type=str, default=",")
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy decoding")
    add_decoding_arguments(parser, max_new_tokens=512)
    add_connector_arguments(parser)
    return parser


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
