"""What the answer generators ask: one message about at most one picture, and the data loader that prepares it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from llava.chat import announce_images, build_prompt, check_markers
from llava.image_utils import ImageError, load_image_from_base64, open_image
from llava.inference import prepare_images
from llava.mm_utils import tokenizer_image_token
from llava.program import RequestError


@dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        fields: what its line in the answers file says besides the reply.
        message: the user's words, without a picture's marker.
        image: path of the picture; None for a question about none.
        image_base64: the picture's file in base64 instead of a path.
    """

    fields: dict[str, Any]
    message: str
    image: str | None = None
    image_base64: str | None = None

    @property
    def num_images(self) -> int:
        return int(self.image is not None or self.image_base64 is not None)


@dataclass(frozen=True)
class Example:
    """A query ready for the model.

    Attributes:
        index: of the query in its data set.
        input_ids: `[n]`, IMAGE_TOKEN_INDEX where the picture goes.
        image: `[3, H, W]`, or `[crops, 3, H, W]`; None without a picture.
        image_size: (width, height) of the picture.
    """

    index: int
    input_ids: torch.Tensor
    image: torch.Tensor | None
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Failure:
    """A query that cannot be asked; `error` is an ImageError or RequestError and names the cause."""

    index: int
    error: ValueError


def chat_prompt(message: str, num_images: int, model_config: Any, conv_mode: str) -> str:
    """The message behind its pictures' marker lines, in the template `conv_mode`, with the assistant's turn open."""
    return build_prompt(announce_images(message, model_config, num_images), conv_mode)


class QueryDataset(Dataset):
    """Queries as `Example`, or `Failure` where the picture or the text cannot be used.

    Holds nothing of the model but its tokenizer, image processor and configuration, so it travels to worker processes
    however these are started (E-4).
    """

    def __init__(
        self,
        queries: Sequence[Query],
        tokenizer: Any,
        image_processor: Any,
        model_config: Any,
        conv_mode: str,
        make_prompt: Callable[[str, int, Any, str], str] = chat_prompt,
    ) -> None:
        self.queries = queries
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.model_config = model_config
        self.conv_mode = conv_mode
        self.make_prompt = make_prompt

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Example | Failure:
        try:
            return self._prepare(index, self.queries[index])
        except (ImageError, RequestError) as error:
            return Failure(index, error)

    def _prepare(self, index: int, query: Query) -> Example:
        prompt = self.make_prompt(query.message, query.num_images, self.model_config, self.conv_mode)
        check_markers(prompt, query.num_images)
        ids = tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt")
        if not query.num_images:
            return Example(index, ids, None, None)
        picture = load_image_from_base64(query.image_base64) if query.image is None else open_image(query.image)
        images, sizes = prepare_images([picture], self.image_processor, self.model_config)
        return Example(index, ids, images[0], sizes[0])


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


def query_loader(
    dataset: QueryDataset,
    batch_size: int,
    num_workers: int,
    collate: Callable[[list[Example | Failure]], Any] = _as_list,
) -> DataLoader:
    """Batches of `batch_size` prepared queries in their order, made ahead of the model.

    Args:
        num_workers: at most so many processes; 0 prepares in this one.
        collate: makes a batch of a list of prepared queries; the list itself by default.
    """
    num_workers = min(num_workers, os.cpu_count() or 1, -(-len(dataset) // batch_size))
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers, collate_fn=collate)
