"""Short answers to a file of questions about pictures (contract: eval.md 1.2)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from llava.eval.answering.answerer import AnswerOptions, model_name, template_for
from llava.eval.answering.arguments import add_decoding_arguments, add_generator_arguments
from llava.eval.answering.queries import Example, Failure, Query, QueryDataset, query_loader
from llava.eval.answering.question_files import get_chunk, picture_path, read_picture_questions, split_list
from llava.eval.answering.run import NUM_WORKERS, answer_queries
from llava.program import run_program

__all__ = ["create_data_loader", "eval_model", "get_chunk", "split_list"]


def _only_example(batch: list[Example | Failure]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    example = batch[0]
    if isinstance(example, Failure):
        raise example.error
    return example.input_ids.unsqueeze(0), example.image.unsqueeze(0), [example.image_size]


def create_data_loader(
    questions: Sequence[dict[str, Any]],
    image_folder: str,
    tokenizer: Any,
    image_processor: Any,
    model_config: Any,
    batch_size: int = 1,
    num_workers: int = 4,
    conv_mode: str = "llava_v1",
) -> DataLoader:
    """Upstream's loader: `(input_ids [1, n], images [1, ...], image_sizes)` for each question, in order.

    Args:
        questions: `text` and `image` of each.
        batch_size: only 1.
        conv_mode: name of the prompt template.

    Raises:
        AssertionError: another batch size.
    """
    assert batch_size == 1, "batch_size must be 1"
    queries = [
        Query(question, question["text"], picture_path(image_folder, question["image"])) for question in questions
    ]
    dataset = QueryDataset(queries, tokenizer, image_processor, model_config, conv_mode)
    return query_loader(dataset, 1, num_workers, _only_example)


def eval_model(args: Any, num_workers: int = NUM_WORKERS) -> None:
    """Write the answers to this chunk's questions; `args` is any object with the flags as attributes.

    Raises:
        RequestError: bad flags or question file, or some question could not be answered; see `answer_queries`.
    """
    conv_mode = template_for(model_name(args.model_path), args.conv_mode)
    options = AnswerOptions(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    answer_queries(read_picture_questions(args), args, options, conv_mode, num_workers=num_workers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser, max_new_tokens=128)
    return parser


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
