"""Answers to a file of questions about pictures, which a data loader prepares ahead (contract: eval.md 1.2)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.chat import announce_images, build_prompt, check_markers, check_template
from llava.conversation import conv_templates
from llava.eval.generation import (
    Answerer,
    AnswerOptions,
    add_decoding_arguments,
    add_generator_arguments,
)
from llava.eval.question_files import answer_record, answers_writer, get_chunk, read_questions, split_list
from llava.image_utils import ImageError, open_image
from llava.inference import Images, connector_overrides, prepare_images
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.program import RequestError, run_program

__all__ = ["create_data_loader", "eval_model", "get_chunk", "split_list"]

logger = logging.getLogger(__name__)

Example = tuple[torch.Tensor, Images, list[tuple[int, int]]]


class QuestionDataset(Dataset):
    """Questions as `(input_ids [1, n], images [1, ...], image_sizes)`: a batch of one, ready for the model."""

    def __init__(
        self,
        questions: Sequence[dict[str, Any]],
        image_folder: str,
        tokenizer: Any,
        image_processor: Any,
        model_config: Any,
        conv_mode: str,
    ) -> None:
        self.questions = questions
        self.image_folder = image_folder
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.model_config = model_config
        self.conv_mode = conv_mode

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """
        Raises:
            ImageError, RequestError: the picture or the text cannot be used; names the question.
        """
        question = self.questions[index]
        try:
            return self._prepare(question)
        except (ImageError, RequestError) as error:
            raise type(error)(f"question {question['question_id']}: {error}") from error

    def _prepare(self, question: dict[str, Any]) -> Example:
        prompt = build_prompt(announce_images(question["text"], self.model_config), self.conv_mode)
        check_markers(prompt, 1)
        picture = open_image(os.path.join(self.image_folder, question["image"]))
        images, sizes = prepare_images([picture], self.image_processor, self.model_config)
        ids = tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt").unsqueeze(0)
        return ids, images, sizes


def _only_item(batch: list[Example]) -> Example:
    return batch[0]


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
    """Loads and tokenizes the questions in their order, ahead of the model.

    Args:
        batch_size: only 1.
        num_workers: at most so many processes; 0 prepares in this one.
        conv_mode: name of the prompt template.

    Raises:
        AssertionError: another batch size.
    """
    assert batch_size == 1, "batch_size must be 1"
    dataset = QuestionDataset(questions, image_folder, tokenizer, image_processor, model_config, conv_mode)
    num_workers = min(num_workers, os.cpu_count() or 1, len(dataset))
    return DataLoader(dataset, batch_size=1, shuffle=False, num_workers=num_workers, collate_fn=_only_item)


def _examples(loader: DataLoader) -> Iterator[Example]:
    """The loader's batches. An error in a worker comes wrapped in that worker's traceback, so it is met again here."""
    batches = iter(loader)
    for index in range(len(loader)):
        try:
            example = next(batches)
        except (ImageError, RequestError):
            example = None
        yield loader.dataset[index] if example is None else example


def template_for(model_name: str, conv_mode: str) -> str:
    """`conv_mode`, or its `mmtag` variant for a model that saw nothing but image and caption pairs (E-3).

    A mode without such a variant is kept.
    """
    if "plain" not in model_name or "finetune" in model_name or "mmtag" in conv_mode:
        return conv_mode
    short = conv_mode.removeprefix("vicuna_").removeprefix("llava_")
    tagged = next((name for name in (f"{conv_mode}_mmtag", f"{short}_mmtag") if name in conv_templates), conv_mode)
    if tagged != conv_mode:
        logger.warning("%s looks like a plain (pre-trained only) model: --conv-mode becomes %s.", model_name, tagged)
    return tagged


def eval_model(args: Any, num_workers: int = 4) -> None:
    """Write the answers to this chunk's questions; `args` is any object with the flags as attributes.

    A chunk without questions gives an empty file (E-2), and no model is loaded for it.

    Raises:
        RequestError: unknown template, bad question file or chunk.
        ImageError: a picture cannot be used; names question and path.
    """
    conv_mode = template_for(get_model_name_from_path(os.path.expanduser(args.model_path)), args.conv_mode)
    check_template(conv_mode)
    questions = read_questions(args.question_file, required=("question_id", "image", "text"))
    questions = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answerer = Answerer.open(args.model_path, args.model_base, **connector_overrides(args)) if questions else None
    with answers_writer(args.answers_file) as write:
        if answerer is None:
            return
        loader = create_data_loader(
            questions,
            os.path.expanduser(args.image_folder),
            answerer.tokenizer,
            answerer.image_processor,
            answerer.model.config,
            num_workers=num_workers,
            conv_mode=conv_mode,
        )
        options = AnswerOptions(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
        for question, example in zip(questions, tqdm(_examples(loader), total=len(questions)), strict=True):
            text = answerer.answer_ids(*example, options)
            write(answer_record(question["question_id"], question["text"], text, answerer.name))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_generator_arguments(parser)
    add_decoding_arguments(parser, max_new_tokens=128)
    return parser


if __name__ == "__main__":
    run_program(lambda: eval_model(build_parser().parse_args()))
