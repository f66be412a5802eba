"""Answer questions about images with short replies."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava.eval.answering.arguments import add_decoding_arguments, add_generator_arguments, options_from
from llava.eval.answering.model_names import model_name, template_for
from llava.eval.answering.options import NUM_WORKERS, DecodingOptions, RunOptions
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import Selection, get_chunk, image_path, read_image_questions, split_list
from llava.program import run_program

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["create_data_loader", "eval_model", "get_chunk", "split_list"]


def create_data_loader(
    questions: Sequence[dict[str, Any]],
    image_folder: str,
    tokenizer: Any,
    image_processor: Any,
    model_config: Any,
    batch_size: int = 1,
    num_workers: int = 4,
    conv_mode: str = "llava_v1",
) -> "DataLoader":
    """Return upstream's data loader, which yields `(input_ids [1, n], images [1, ...], image_sizes)` per question.

    Args:
        questions: rows of `text` and `image`.
        batch_size: must be 1.
        conv_mode: name of the prompt template.

    Raises:
        AssertionError: another batch size.
    """
    from llava.eval.answering.loader import QueryDataset, only_example, query_loader  # loads torch

    assert batch_size == 1, "batch_size must be 1"
    queries = [Query(question, question["text"], image_path(image_folder, question["image"])) for question in questions]
    dataset = QueryDataset(queries, tokenizer, image_processor, model_config, conv_mode)
    return query_loader(dataset, 1, num_workers, only_example)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser, max_new_tokens=128)
    return parser


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's questions; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question was not answered; see `answer_queries`.
    """
    from llava.eval.answering.run import answer_queries  # loads torch

    queries = read_image_questions(args.question_file, args.image_folder, options_from(Selection, args))
    run = options_from(RunOptions, args, conv_mode=template_for(model_name(args.model_path), args.conv_mode))
    decoding = DecodingOptions(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    answer_queries(queries, run, decoding, num_workers=num_workers)


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
