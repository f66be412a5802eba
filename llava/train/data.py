"""The training data set and its collator."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.image_processing import preprocess_padded, process_anyres_image, to_pixels
from llava.images import MAX_IMAGE_PIXELS, image_size, open_image
from llava.train.planning import PlanningCollator
from llava.train.preprocess import pad_right, padding_id, preprocess, preprocess_multimodal
from llava.train.records import load_records

logger = logging.getLogger(__name__)

# What an image adds to the length of a sample when samples are grouped by length.
IMAGE_LENGTH = 128


class BadSampleError(ValueError):
    """A record cannot be used for training; the message names the record, the cause and the remedy."""


def resolve_image_path(image_folder: str | None, name: str, follow_links: bool = True) -> str:
    """The path of a record's image, which must be inside the image folder.

    The path as written decides: an absolute path elsewhere and ``..`` out of the folder are refused. Links inside
    the folder are followed, since data sets are usually linked into it; ``follow_links=False`` also refuses links that
    lead out of it.

    Raises:
        ValueError: the path leaves the folder, or there is no folder.
    """
    if not image_folder:
        raise ValueError("there is no image folder; pass --image_folder")
    folder = os.path.abspath(image_folder)
    path = os.path.abspath(os.path.join(folder, name))  # resolves `..` in the text, before any link is followed
    real_folder, real_path = os.path.realpath(folder), os.path.realpath(path)
    inside = _is_inside(real_path, real_folder) or (follow_links and _is_inside(path, folder))
    if not inside:
        raise ValueError(
            f"the path leads out of the image folder '{image_folder}'; use paths inside it, or another --image_folder"
        )
    return path


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


class LazySupervisedDataset(Dataset):
    """Conversations, tokenized and joined with their image on access.

    An item has ``input_ids`` and ``labels`` (1-D LongTensors) and, in a multimodal run, ``image`` (``[3, H, W]``,
    zeros for a text-only sample).

    ``data_args`` needs ``is_multimodal``, and in a multimodal run ``image_folder``, ``image_aspect_ratio``,
    ``image_processor`` and ``mm_use_im_start_end``. Optional are

    * ``conv``: the prompt template; without it ``llava.conversation.default_conversation``.
    * ``on_bad_sample``: ``error`` (default) raises ``BadSampleError``; ``skip`` takes the next good sample of the same
      modality instead (so batches stay as the sampler grouped them), counts the sample and logs it once.
    * ``uint8_images``: leave normalisation to the vision tower.
    * ``image_grid_pinpoints``: needed for ``image_aspect_ratio`` ``anyres``; items then have ``image``
      ``[1 + tiles, 3, H, W]`` and ``image_size``, (width, height) in pixels.
    * ``max_image_pixels``: largest width x height of an image.
    * ``follow_image_links``: see ``resolve_image_path``.
    """

    def __init__(self, data_path: str, tokenizer, data_args):
        """
        Raises:
            ValueError: the data file is malformed, or ``on_bad_sample`` has an unknown value.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.list_data_dict = load_records(data_path)
        self.on_bad_sample = getattr(data_args, "on_bad_sample", "error")
        if self.on_bad_sample not in ("error", "skip"):
            raise ValueError(f"--on_bad_sample is '{self.on_bad_sample}'; use 'error' or 'skip'.")
        # Indices of the samples that were skipped, in this process (data loader workers are processes of their own).
        self.bad_samples: set[int] = set()

    def __len__(self) -> int:
        return len(self.list_data_dict)

    @property
    def lengths(self) -> list[int]:
        """Words of every sample, plus 128 for an image; no image is opened."""
        return [_count_words(record) + IMAGE_LENGTH * ("image" in record) for record in self.list_data_dict]

    @property
    def modality_lengths(self) -> list[int]:
        """Words of every sample, negative for text-only samples; no image is opened."""
        return [_count_words(record) * (1 if "image" in record else -1) for record in self.list_data_dict]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]
        if self.on_bad_sample == "error":
            return self.load(index)
        for candidate in self._same_modality_from(index):
            if candidate in self.bad_samples:
                continue
            try:
                return self.load(candidate)
            except BadSampleError as error:
                self.bad_samples.add(candidate)
                logger.warning("Skipped (%d so far in this process): %s", len(self.bad_samples), error)
        raise BadSampleError(f"record {index} and every other one of its kind is unusable; see the warnings above.")

    def _same_modality_from(self, index: int):
        """This index, then the later ones with an image if it has one, without otherwise; around the end."""
        has_image = "image" in self.list_data_dict[index]
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if ("image" in self.list_data_dict[candidate]) == has_image:
                yield candidate

    def load(self, index: int) -> dict[str, torch.Tensor]:
        """The item of exactly this record.

        Raises:
            BadSampleError: it cannot be used.
        """
        return self._guarded(self._build, index)

    def measure(self, index: int) -> tuple[int, int, int, int]:
        """Number of token ids and of image markers among them, and for anyres the image's width and height, else 0.

        Raises:
            BadSampleError: the record cannot be used. No pixels are decoded.
        """
        return self._guarded(self._measure, index)

    def _guarded(self, work: Callable[[dict[str, Any]], Any], index: int) -> Any:
        record = self.list_data_dict[index]
        try:
            return work(record)
        except (ValueError, AssertionError, KeyError) as error:
            image = f", image '{record['image']}'" if "image" in record else ""
            cause = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise BadSampleError(
                f"record {index} (id '{record.get('id')}'{image}): {str(cause).rstrip('.')}. "
                "Repair or remove the record, or train without such records with --on_bad_sample skip."
            ) from error

    def _measure(self, record: dict[str, Any]) -> tuple[int, int, int, int]:
        ids = self._tokenize(record)["input_ids"]
        width = height = 0
        if "image" in record and self.data_args.image_aspect_ratio == "anyres":
            width, height = image_size(self._image_path(record["image"]))
        return len(ids), int((ids == IMAGE_TOKEN_INDEX).sum()), width, height

    def _tokenize(self, record: dict[str, Any]) -> dict[str, torch.Tensor]:
        conv = getattr(self.data_args, "conv", None)
        _check_turns(record["conversations"])
        sources = [record["conversations"]]
        has_image = "image" in record
        if has_image:
            sources = preprocess_multimodal(sources, self.data_args, conv)
            _check_markers(sources[0])
        rows = preprocess(sources, self.tokenizer, has_image=has_image, conv=conv)
        return {"input_ids": rows["input_ids"][0], "labels": rows["labels"][0]}

    def _build(self, record: dict[str, Any]) -> dict[str, torch.Tensor]:
        args = self.data_args
        item = self._tokenize(record)
        if "image" in record:
            item |= self._load_image(record["image"])
        elif args.is_multimodal:
            crop = args.image_processor.crop_size
            item["image"] = torch.zeros(3, crop["height"], crop["width"])
        return item

    def _image_path(self, name: Any) -> str:
        if not isinstance(name, str):
            raise ValueError(f"'image' is a {type(name).__name__}, not the path of one image")
        args = self.data_args
        return resolve_image_path(args.image_folder, name, getattr(args, "follow_image_links", True))

    def _load_image(self, name: Any) -> dict[str, Any]:
        args = self.data_args
        image = open_image(self._image_path(name), max_pixels=getattr(args, "max_image_pixels", MAX_IMAGE_PIXELS))
        as_uint8 = getattr(args, "uint8_images", False)
        if args.image_aspect_ratio == "anyres":
            crops = process_anyres_image(image, args.image_processor, args.image_grid_pinpoints, as_uint8)
            return {"image": crops, "image_size": image.size}
        if args.image_aspect_ratio == "pad":
            return {"image": preprocess_padded(image, args.image_processor, as_uint8)}
        return {"image": to_pixels(image, args.image_processor, as_uint8)}


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)


def _count_words(record: dict[str, Any]) -> int:
    return sum(len(turn["value"].split()) for turn in record["conversations"] if _is_turn(turn))


def _check_turns(conversation: list) -> None:
    if not conversation or not all(_is_turn(turn) for turn in conversation):
        raise ValueError('"conversations" has to be a list of {"from": "human" or "gpt", "value": "text"}')


def _check_markers(source: Sequence[dict[str, str]]) -> None:
    """A second marker would take the features of another row's image; none is allowed, the image is unused."""
    count = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in source)
    if count > 1:
        raise ValueError(f"{DEFAULT_IMAGE_TOKEN} occurs {count} times, but the record has one image")


@dataclass
class DataCollatorForSupervisedDataset:
    """Collates a batch: rows are padded on the right and cut at ``tokenizer.model_max_length``.

    Keys: ``input_ids``, ``labels`` (``[B, n]``), ``attention_mask`` (``[B, n]``, bool, from the lengths of the rows)
    and, if the samples have them, ``images`` (``[B, 3, H, W]``, or a list when shapes differ).
    """

    tokenizer: Any

    def __call__(self, instances: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
        limit = self.tokenizer.model_max_length
        ids = pad_right([instance["input_ids"] for instance in instances], padding_id(self.tokenizer))[:, :limit]
        labels = pad_right([instance["labels"] for instance in instances], IGNORE_INDEX)[:, :limit]
        lengths = torch.tensor([len(instance["input_ids"]) for instance in instances])
        # From lengths, not by comparing with the pad id, which may be the id of a genuine token.
        attention_mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
        batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": attention_mask}
        if "image" in instances[0]:
            images = [instance["image"] for instance in instances]
            same_shape = all(image.shape == images[0].shape for image in images)
            batch["images"] = torch.stack(images) if same_shape else images
        return batch


def make_supervised_data_module(tokenizer, data_args) -> dict[str, Any]:
    """Data set and collator under the Trainer's argument names; there is no evaluation set.

    With a ``layout`` in ``data_args`` (``BatchLayout``) batches are planned.
    """
    layout = getattr(data_args, "layout", None)
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args),
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer) if layout is None else PlanningCollator(layout),
    }
