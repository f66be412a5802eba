"""An open checkpoint that answers prepared queries, one by one or in batches."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.chat import check_markers
from llava.eval.answering.loader import Example
from llava.eval.answering.model_names import model_name
from llava.eval.answering.options import DecodingOptions
from llava.inference import generate_replies, inference_options, prepare_images
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.program import RequestError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Answerer:
    """An open checkpoint.

    Attributes:
        name: name of the model in answers files.
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
            OSError: one of its files is missing.
            ImportError: a package that it needs is missing.
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
        except (ValueError, NotImplementedError) as error:  # inconsistent files, or an unsupported model
            raise RequestError(f"{path} cannot be opened as a model: {error}") from error
        return cls(name, tokenizer, model, image_processor)

    def answer(self, prompt: str, images: list[Image.Image], decoding: DecodingOptions) -> str:
        """Return the reply to a complete prompt, which has one `<image>` per image.

        Raises:
            RequestError: markers and images do not match, or the model takes no images.
        """
        check_markers(prompt, len(images))
        ids = tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt").unsqueeze(0)
        pixels, sizes = None, None
        if images:
            pixels, sizes = prepare_images(images, self.image_processor, self.model.config)
        return generate_replies(self.model, self.tokenizer, ids, pixels, sizes, **decoding.for_generate())[0]

    def answer_batch(self, examples: Sequence[Example], decoding: DecodingOptions) -> list[str]:
        """Return the replies to prepared queries, in their order; those without an image form a batch of their own."""
        replies: dict[int, str] = {}
        for with_image in (True, False):
            group = [example for example in examples if (example.image is not None) == with_image]
            if group:
                texts = self._answer_group(group, decoding)
                replies |= {example.index: text for example, text in zip(group, texts, strict=True)}
        return [replies[example.index] for example in examples]

    def _answer_group(self, examples: Sequence[Example], decoding: DecodingOptions) -> list[str]:
        ids, mask = _pad_left([example.input_ids for example in examples])
        images, sizes = None, None
        if examples[0].image is not None:
            images = [example.image for example in examples]
            sizes = [example.image_size for example in examples]
            if all(image.shape == images[0].shape for image in images):
                images = torch.stack(images)
        padding = {} if len(examples) == 1 else {"attention_mask": mask.to(self.model.device)}
        return generate_replies(self.model, self.tokenizer, ids, images, sizes, **padding, **decoding.for_generate())

    def facts(self) -> dict[str, Any]:
        """Return what --record-run records of the model: device, dtype, connector, visual tokens per image or crop."""
        config = self.model.config
        facts = {"device": self.model.device.type, "dtype": str(self.model.dtype).removeprefix("torch.")}
        if self.image_processor is None:
            return facts
        connector = getattr(config, "mm_projector_type", None) or "linear"
        return facts | {"connector": connector, "num_visual_tokens": self.model.num_visual_tokens}


def _pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids of different lengths on the left; return ids and mask, `[B, n]`."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = True
    return ids, mask
