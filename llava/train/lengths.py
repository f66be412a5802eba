"""The exact length of every sample, computed once and kept in a file."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.files import write_atomically
from llava.train.data import BadSampleError, LazySupervisedDataset
from llava.train.planning import BatchLayout

logger = logging.getLogger(__name__)

FORMAT = 1  # of the file; older files are computed again
AT_ONCE = 256


def measure_samples(dataset: LazySupervisedDataset, num_workers: int, show_progress: bool) -> np.ndarray:
    """Token ids, image markers, and width and height of the image of every sample, `[N, 4]` int32.

    Sizes are 0 where the layout does not depend on them. A bad record has 0 ids with `--on_bad_sample skip`. The
    result is kept in `$LLAVA_CACHE/lengths` (`~/.cache/llava` by default), by data, tokenizer and template.

    Args:
        num_workers: processes; 0 works in this one.

    Raises:
        BadSampleError: a record cannot be used.
    """
    path = _cache_folder() / f"{_fingerprint(dataset)}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    loader = DataLoader(_Measured(dataset), AT_ONCE, num_workers=num_workers, collate_fn=np.array)
    name = "Measuring samples"
    measured = np.concatenate(list(tqdm(loader, desc=name, disable=not show_progress)) or [np.zeros((0, 4))])
    measured = measured.astype(np.int32)
    bad = int((measured[:, 0] == 0).sum())
    if bad:
        logger.warning("%d of %d records cannot be used and are left out.", bad, len(measured))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), lambda temporary: _save(measured, temporary))
    return measured


def lengths_of(measured: np.ndarray, layout: BatchLayout, num_visual_tokens: int | None = None) -> np.ndarray:
    """Positions of every sample after images are put in and it is cut, `[N]`; 0 for bad ones.

    Args:
        measured: see `measure_samples`.
        num_visual_tokens: per image or crop, instead of the model's own number.
    """
    kinds, inverse = np.unique(measured, axis=0, return_inverse=True)
    per_kind = [
        layout.sequence_length(ids, markers, (width, height), num_visual_tokens) if ids else 0
        for ids, markers, width, height in kinds.tolist()
    ]
    return np.array(per_kind, dtype=np.int64)[inverse.ravel()]


class _Measured(Dataset):
    def __init__(self, dataset: LazySupervisedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        try:
            return self.dataset.measure(index)
        except BadSampleError:
            if self.dataset.on_bad_sample == "error":
                raise
            return 0, 0, 0, 0


def _save(measured: np.ndarray, path: str) -> None:
    with open(path, "wb") as file:
        np.save(file, measured, allow_pickle=False)


def _cache_folder() -> Path:
    return Path(os.environ.get("LLAVA_CACHE") or Path.home() / ".cache/llava") / "lengths"


def _fingerprint(dataset: LazySupervisedDataset) -> str:
    """Of everything that the lengths depend on."""
    args, tokenizer = dataset.data_args, dataset.tokenizer
    digest = hashlib.sha256()
    with open(args.data_path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(_tokenizer_text(tokenizer).encode())
    with_sizes = args.is_multimodal and args.image_aspect_ratio == "anyres"
    settings = [FORMAT, args.conv, args.is_multimodal, tokenizer.model_max_length, args.on_bad_sample, with_sizes]
    settings += [args.mm_use_im_start_end if args.is_multimodal else None, args.image_folder if with_sizes else None]
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:32]


def _tokenizer_text(tokenizer: Any) -> str:
    """The tokenizer's whole definition, or its vocabulary where it has no fast backend."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
