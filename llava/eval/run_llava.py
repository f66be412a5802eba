"""Ask a model one question about one or several images."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Sequence
from typing import Any

from PIL import Image

from llava.chat import build_prompt, check_template, choose_template, place_images_in_query
from llava.eval.answering.arguments import add_decoding_arguments
from llava.eval.answering.options import DecodingOptions
from llava.image_source import load_image
from llava.inference import add_connector_arguments, connector_overrides
from llava.program import run_program

__all__ = ["eval_model", "image_parser", "load_image", "load_images"]


def image_parser(args: Any) -> list[str]:
    """Return the sources in `args.image_file`, split at `args.sep`; an empty separator does not split."""
    return args.image_file.split(args.sep) if args.sep else [args.image_file]


def load_images(image_files: Sequence[str]) -> list[Image.Image]:
    """Open RGB images from paths and web addresses.

    Raises:
        ImageError: an image is unusable; names it.
    """
    return [load_image(image_file) for image_file in image_files]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-file", type=str, required=True, help="paths or web addresses, joined by --sep")
    parser.add_argument("--query", type=str, required=True, help="may contain <image-placeholder>, once per image")
    parser.add_argument("--conv-mode", type=str, default=None, help="template (default: from the model)")
    parser.add_argument("--sep", type=str, default=",")
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy decoding")
    add_decoding_arguments(parser, max_new_tokens=512)
    add_connector_arguments(parser)
    return parser


def eval_model(args: Any) -> None:
    """Print the reply to `args.query`.

    Without `<image-placeholder>` in the query, one marker line per image is put in front of it.

    Args:
        args: any object with the flags as attributes.

    Raises:
        RequestError: unknown template, or not one placeholder per image.
        ImageError: an image is unusable.
    """
    check_template(args.conv_mode)
    images = load_images(image_parser(args))
    from llava.eval.answering.answerer import Answerer  # loads torch

    answerer = Answerer.open(args.model_path, args.model_base, **connector_overrides(args))
    config = answerer.model.config
    template = choose_template(args.conv_mode, answerer.name, config)
    prompt = build_prompt(place_images_in_query(args.query, config, len(images)), template)
    decoding = DecodingOptions(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    print(answerer.answer(prompt, images, decoding))


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
