"""The flags that the answer generators share, and the options that they describe."""

import argparse
import dataclasses
from typing import Any, TypeVar

from llava.inference import add_connector_arguments

Options = TypeVar("Options")


def add_generator_arguments(
    parser: argparse.ArgumentParser, question_file: str = "tables/question.jsonl", conv_mode: str = "llava_v1"
) -> None:
    """Add the flags that all `model_vqa*` share, upstream's and ours."""
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-folder", type=str, default="")
    parser.add_argument("--question-file", type=str, default=question_file)
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    parser.add_argument("--conv-mode", type=str, default=conv_mode)
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy decoding")
    add_run_arguments(parser)


def add_decoding_arguments(parser: argparse.ArgumentParser, max_new_tokens: int | None = None) -> None:
    """Add upstream's decoding flags, spelled with underscores.

    Args:
        max_new_tokens: default of that flag; None leaves it out.
    """
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    if max_new_tokens is not None:
        parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags that upstream does not have. Their defaults keep upstream's behaviour."""
    parser.add_argument("--batch-size", type=int, default=1, help="questions answered at once")
    parser.add_argument("--resume", action="store_true", help="keep the answers in the file, add the missing ones")
    parser.add_argument("--limit", type=int, default=None, help="answer only so many questions, from the file's start")
    parser.add_argument(
        "--record-run", action="store_true", help="write model, decoding and seconds into each answer's metadata"
    )
    add_connector_arguments(parser)


def options_from(kind: type[Options], args: Any, **given: Any) -> Options:
    """Build a dataclass of options from the flags of the same names.

    Callers of `eval_model` may pass any object; options whose attributes it lacks keep their defaults.

    Args:
        given: values that take precedence over the flags.
    """
    names = [field.name for field in dataclasses.fields(kind) if hasattr(args, field.name)]
    return kind(**({name: getattr(args, name) for name in names} | given))
