"""The data loader of the answer generators: queries become token ids and pixel values, ahead of the model."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from llava.chat import announce_images, build_prompt, check_markers
from llava.eval.answering.queries import Query
from llava.images import ImageError, load_image_from_base64, open_image
from llava.inference import prepare_images
from llava.mm_utils import tokenizer_image_token
from llava.program import RequestError

# (message, number of images, the model's configuration, conv_mode) -> prompt
MakePrompt = Callable[[str, int, Any, str], str]


@dataclass(frozen=True)
class Example:
    """A query ready for the model.

    Attributes:
        index: index of the query in its data set.
        input_ids: `[n]`, IMAGE_TOKEN_INDEX at the position of the image.
        image: `[3, H, W]`, or `[crops, 3, H, W]`; None without an image.
        image_size: (width, height) of the original image.
    """

    index: int
    input_ids: torch.Tensor
    image: torch.Tensor | None
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Failure:
    """A query that cannot be prepared; `error` is an ImageError or RequestError that names the cause."""

    index: int
    error: ValueError


def chat_prompt(message: str, num_images: int, model_config: Any, conv_mode: str) -> str:
    """Return the prompt for a message: image markers, then the message, in the template `conv_mode`."""
    return build_prompt(announce_images(message, model_config, num_images), conv_mode)


class QueryDataset(Dataset):
    """Queries prepared for a model: an `Example`, or a `Failure` if the image or the text is unusable.

    It holds only the model's tokenizer, image processor and configuration, and can be pickled, so that worker processes
    may be spawned as well as forked.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        tokenizer: Any,
        image_processor: Any,
        model_config: Any,
        conv_mode: str,
        make_prompt: MakePrompt = chat_prompt,
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
        image = load_image_from_base64(query.image_base64) if query.image is None else open_image(query.image)
        images, sizes = prepare_images([image], self.image_processor, self.model_config)
        return Example(index, ids, images[0], sizes[0])


def only_example(batch: list[Example | Failure]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """Collate a batch of one as upstream's loader does.

    Raises:
        ImageError, RequestError: the query could not be prepared.
    """
    example = batch[0]
    if isinstance(example, Failure):
        raise example.error
    return example.input_ids.unsqueeze(0), example.image.unsqueeze(0), [example.image_size]


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


def query_loader(
    dataset: QueryDataset,
    batch_size: int,
    num_workers: int,
    collate: Callable[[list[Example | Failure]], Any] = _as_list,
) -> DataLoader:
    """Return a data loader of prepared queries, in their order.

    Args:
        num_workers: largest number of worker processes; 0 prepares in this process.
        collate: turns a list of prepared queries into a batch; by default the list is the batch.
    """
    num_workers = min(num_workers, os.cpu_count() or 1, -(-len(dataset) // batch_size))
    return DataLoader(dataset, batch_size, shuffle=False, num_workers=num_workers, collate_fn=collate)
