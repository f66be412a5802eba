"""The core of all answer generators: open a checkpoint, ask it a question, get the reply (contract: eval.md 1)."""

import argparse
import os
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.chat import check_markers
from llava.inference import Images, add_connector_arguments, generate_reply, inference_options, prepare_images
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.builder import load_pretrained_model


@dataclass(frozen=True)
class AnswerOptions:
    """How replies are generated.

    Attributes:
        temperature: 0 is greedy, or beam search.
        top_p: nucleus when sampling; None is the whole distribution, whatever generation_config.json says.
        num_beams: beams.
        max_new_tokens: longest reply.
    """

    temperature: float = 0.2
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 1024

    def for_generate(self) -> dict[str, Any]:
        """As keyword arguments of `generate_reply`."""
        return {
            "temperature": self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True)
class Answerer:
    """An open checkpoint.

    Attributes:
        name: the model's name, as answers files record it.
        image_processor: None for a plain language model.
    """

    name: str
    tokenizer: Any
    model: PreTrainedModel
    image_processor: Any

    @classmethod
    def open(cls, model_path: str, model_base: str | None, **connector: Any) -> "Answerer":
        """Load a checkpoint on this machine's accelerator, else on the CPU; `~` is expanded.

        Args:
            connector: another budget or connector than the checkpoint's, see `load_pretrained_model`.
        """
        path = os.path.expanduser(model_path)
        base = None if model_base is None else os.path.expanduser(model_base)
        name = get_model_name_from_path(path)
        tokenizer, model, image_processor, _ = load_pretrained_model(
            path, base, name, **inference_options(), **connector
        )
        return cls(name, tokenizer, model, image_processor)

    def answer(self, prompt: str, pictures: list[Image.Image], options: AnswerOptions) -> str:
        """The reply to a finished prompt, which has one `<image>` for each picture.

        Raises:
            RequestError: markers and pictures do not match, or the model takes no pictures.
        """
        check_markers(prompt, len(pictures))
        ids = tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt").unsqueeze(0)
        images, sizes = None, None
        if pictures:
            images, sizes = prepare_images(pictures, self.image_processor, self.model.config)
        return self.answer_ids(ids, images, sizes, options)

    def answer_ids(
        self,
        input_ids: torch.Tensor,
        images: Images | None,
        image_sizes: list[tuple[int, int]] | None,
        options: AnswerOptions,
    ) -> str:
        """The reply to token ids `[1, n]` and pixel values that a data loader has prepared."""
        return generate_reply(self.model, self.tokenizer, input_ids, images, image_sizes, **options.for_generate())


def add_generator_arguments(
    parser: argparse.ArgumentParser, question_file: str = "tables/question.jsonl", conv_mode: str = "llava_v1"
) -> None:
    """The flags that all `model_vqa*` have."""
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-folder", type=str, default="")
    parser.add_argument("--question-file", type=str, default=question_file)
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    parser.add_argument("--conv-mode", type=str, default=conv_mode)
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy decoding")


def add_decoding_arguments(parser: argparse.ArgumentParser, max_new_tokens: int | None = None) -> None:
    """The flags, with underscores, that all generators have; the last only with a default for it."""
    add_connector_arguments(parser)
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    if max_new_tokens is not None:
        parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)
