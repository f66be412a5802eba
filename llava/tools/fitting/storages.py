"""Counting the bytes of all tensors that are alive."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveStorages(TorchDispatchMode):
    """While it is entered, every storage that an operator returns is counted until it is freed.

    Storages, not tensors: views count once, and what autograd keeps for the backward pass counts as long as it keeps
    it. Temporaries inside an operator are not seen. Fake tensors count as what they stand for, tensors on the meta
    device count nothing.

    Attributes:
        live: bytes alive now.
        peak: the largest value of `live` so far; may be set back to `live`.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), counted: Iterable[torch.Tensor] = ()) -> None:
        """
        Args:
            known: tensors that exist already and are not counted.
            counted: tensors that exist already and are counted.
        """
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._add(tensor, counts=False)
        for tensor in counted:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self._add(value)
        return result

    def _add(self, tensor: torch.Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counts else 0
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
