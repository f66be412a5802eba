"""The core of all answer generators: open a checkpoint, ask it questions, get the replies (contract: eval.md 1)."""

import logging
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.chat import check_markers
from llava.conversation import conv_templates
from llava.eval.answering.queries import Example
from llava.inference import generate_replies, inference_options, prepare_images
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.program import RequestError

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


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

    def __post_init__(self) -> None:
        """
        Raises:
            RequestError: a value that means nothing.
        """
        for flag, value in (("num_beams", self.num_beams), ("max_new_tokens", self.max_new_tokens)):
            if value < 1:
                raise RequestError(f"--{flag} is {value}; it must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RequestError(f"--top_p is {self.top_p}; it must be above 0, and 1 or less")
        if math.isnan(self.temperature):
            raise RequestError("--temperature is nan; it must be a number, 0 for greedy decoding")

    def for_generate(self) -> dict[str, Any]:
        """As keyword arguments of `generate_replies`."""
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

        Raises:
            RequestError: the checkpoint cannot be opened.
            OSError, ImportError: a file of it or a package is missing, see `load_pretrained_model`.
        """
        path = os.path.expanduser(model_path)
        base = None if model_base is None else os.path.expanduser(model_base)
        name = model_name(model_path)
        for place in (path, base):
            if place is not None and not os.path.isdir(place) and not HUB_NAME.fullmatch(place):
                raise RequestError(f"there is no folder {place!r}; give a checkpoint's folder, or its name on the Hub")
        try:
            tokenizer, model, image_processor, _ = load_pretrained_model(
                path, base, name, **inference_options(), **connector
            )
        except (ValueError, NotImplementedError) as error:  # its files do not fit together, or are none of ours
            raise RequestError(f"{path} cannot be opened as a model: {error}") from error
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
        return generate_replies(self.model, self.tokenizer, ids, images, sizes, **options.for_generate())[0]

    def answer_batch(self, examples: Sequence[Example], options: AnswerOptions) -> list[str]:
        """The replies to prepared queries, in their order; those without a picture are generated apart."""
        replies: dict[int, str] = {}
        for with_picture in (True, False):
            group = [example for example in examples if (example.image is not None) == with_picture]
            if group:
                texts = self._answer_group(group, options)
                replies |= {example.index: text for example, text in zip(group, texts, strict=True)}
        return [replies[example.index] for example in examples]

    def _answer_group(self, examples: Sequence[Example], options: AnswerOptions) -> list[str]:
        ids, mask = _pad_left([example.input_ids for example in examples])
        images, sizes = None, None
        if examples[0].image is not None:
            images = [example.image for example in examples]
            sizes = [example.image_size for example in examples]
            if all(image.shape == images[0].shape for image in images):
                images = torch.stack(images)
        padding = {} if len(examples) == 1 else {"attention_mask": mask.to(self.model.device)}
        return generate_replies(self.model, self.tokenizer, ids, images, sizes, **padding, **options.for_generate())

    def facts(self) -> dict[str, Any]:
        """What a result depends on, as answers record it with `--record-run`; sizes count one picture or crop."""
        config = self.model.config
        facts = {"device": self.model.device.type, "dtype": str(self.model.dtype).removeprefix("torch.")}
        if self.image_processor is None:
            return facts
        connector = getattr(config, "mm_projector_type", None) or "linear"
        return facts | {"connector": connector, "num_visual_tokens": self.model.num_visual_tokens}


@dataclass
class Timer:
    """Seconds per answer of each batch, loading and decoding included."""

    start: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    def lap(self, num_answers: int) -> float:
        """Seconds since the last lap, per answer."""
        now = time.monotonic()
        seconds, self.start = (now - self.start) / num_answers, now
        return seconds


def model_name(model_path: str) -> str:
    """The model's name, as answers files record it; `~` is expanded.

    Raises:
        RequestError: the path is that of a `checkpoint-*` alone.
    """
    try:
        return get_model_name_from_path(os.path.expanduser(model_path))
    except IndexError as error:
        raise RequestError(str(error)) from error


def run_facts(answerer: Answerer, options: AnswerOptions, conv_mode: str, batch_size: int) -> dict[str, Any]:
    """The same for every answer of a run: model, template, decoding."""
    return answerer.facts() | {"conv_mode": conv_mode, "batch_size": batch_size} | asdict(options)


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


def _pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths as one `[B, n]`, and their mask."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = True
    return ids, mask
