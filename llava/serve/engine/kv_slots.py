"""The cache of keys and values of running requests: slots of several lengths within one budget of bytes.

A slot is one row of a *slab*, a tensor `[lanes, heads, length, head_dim]` per layer. Requests of similar length share
a slab, so that attention reads them in place, as one batch, without gathering pages; and a request with 65 visual
tokens takes a shorter slot than one with 576. Slabs are allocated on demand, and freed when another length needs the
room.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

LANES = 8  # of a new slab, if the budget allows
STEP = 32  # positions; lengths are multiples of it, and from 256 on of an eighth of the next lower power of two


def slot_length(num_tokens: int) -> int:
    """The slot length for a number of positions: at most 32 more, or from 256 on at most an eighth more."""
    step = max(STEP, 1 << max(0, (num_tokens - 1).bit_length() - 4))
    return -(-num_tokens // step) * step


@dataclass(frozen=True)
class CacheGeometry:
    """The shape of keys and values.

    Attributes:
        num_heads: key-value heads.
        head_dim: width of a head.
        dtype: of keys and values.
        devices: of each layer.
    """

    num_heads: int
    head_dim: int
    dtype: torch.dtype
    devices: Sequence[torch.device]

    @classmethod
    def of_model(cls, model: torch.nn.Module) -> "CacheGeometry":
        """The geometry of a Llama-like causal language model of transformers."""
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        devices = [layer.input_layernorm.weight.device for layer in model.get_model().layers]
        return cls(config.num_key_value_heads, head_dim, model.get_input_embeddings().weight.dtype, devices)

    @property
    def bytes_per_token(self) -> int:
        return 2 * len(self.devices) * self.num_heads * self.head_dim * self.dtype.itemsize


@dataclass(eq=False)
class Slab:
    """Slots of one length: the lanes of a common tensor.

    Attributes:
        keys, values: per layer, `[lanes, heads, length, head_dim]`.
        visible: `[lanes, length]`, True at positions that may be attended to.
        free: unused lanes, ascending.
        unclean: lanes that may hold NaN or infinity. The next owner masks them, but 0 x NaN is NaN.
    """

    length: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    visible: torch.Tensor
    free: list[int]
    num_lanes: int
    unclean: set[int] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        return len(self.free) == self.num_lanes

    def clean(self, lane: int) -> None:
        """Zero a lane if it may hold NaN or infinity."""
        if lane in self.unclean:
            for tensor in (*self.keys, *self.values):
                tensor[lane].zero_()
            self.unclean.remove(lane)


@dataclass(eq=False)
class Slot:
    """The cache of one request; its first `filled` positions are in use."""

    slab: Slab
    lane: int
    filled: int = field(default=0)

    @property
    def length(self) -> int:
        return self.slab.length


class KVSlots:
    """All slots of a model. Used by one thread only.

    Args:
        geometry: of the model.
        budget: bytes that all slabs together may take.
    """

    def __init__(self, geometry: CacheGeometry, budget: int) -> None:
        self.geometry = geometry
        self.budget = budget
        self.slabs: list[Slab] = []

    @property
    def used_bytes(self) -> int:
        """Bytes of all slabs, whether used or kept for the next request."""
        return sum(slab.num_lanes * self._lane_bytes(slab.length) for slab in self.slabs)

    @property
    def num_used(self) -> int:
        return sum(slab.num_lanes - len(slab.free) for slab in self.slabs)

    def acquire(self, num_tokens: int, reserved: int = 0, own: int = 0) -> Slot | None:
        """A slot for `num_tokens` positions, or None while there is no room.

        Args:
            num_tokens: positions needed.
            reserved: bytes of the budget used otherwise (perceptual weights of other requests).
            own: bytes that this request uses besides its slot.
        """
        length, reserved = slot_length(num_tokens), reserved + own
        slab = self._free_slab(length, reserved, exactly=True) or self._new_slab(length, reserved, own)
        if slab is None:  # a free lane that is too long is better than waiting
            slab = self._free_slab(length, reserved, exactly=False)
        if slab is None:
            return None
        slab.clean(slab.free[0])
        lane = slab.free.pop(0)
        slab.visible[lane] = False
        return Slot(slab, lane)

    def release(self, slot: Slot, is_clean: bool = True) -> None:
        """Release a slot; its slab is kept for the next request of its length.

        Args:
            slot: from `acquire`.
            is_clean: False after a failure, when it may hold NaN or infinity.
        """
        if not is_clean:
            slot.slab.unclean.add(slot.lane)
        slot.slab.free.append(slot.lane)
        slot.slab.free.sort()

    def _lane_bytes(self, length: int) -> int:
        return length * self.geometry.bytes_per_token

    def _free_slab(self, length: int, reserved: int, exactly: bool) -> Slab | None:
        """The shortest slab with a free lane, if it fits besides the reserved bytes."""
        fitting = [s for s in self.slabs if s.free and (s.length == length if exactly else s.length > length)]
        slab = min(fitting, key=lambda s: s.length, default=None)
        if slab is None or self._make_room(0, reserved, keep=slab) < 0:
            return None
        return slab

    def _make_room(self, wanted: int, reserved: int, keep: Slab | None = None) -> int:
        """Free bytes, after freeing as many empty slabs as `wanted` bytes need."""
        room = self.budget - reserved - self.used_bytes
        for empty in [slab for slab in self.slabs if slab.is_empty and slab is not keep]:
            if room >= wanted:
                break
            self.slabs.remove(empty)
            room += empty.num_lanes * self._lane_bytes(empty.length)
        return room

    def _new_slab(self, length: int, reserved: int, own: int) -> Slab | None:
        lane_bytes = self._lane_bytes(length)
        room = self._make_room(lane_bytes, reserved)
        if room < lane_bytes:
            return None
        lanes = min(LANES, (room + own) // (lane_bytes + own))  # owners of the other lanes need as much
        g = self.geometry
        shape = (lanes, g.num_heads, length, g.head_dim)
        slab = Slab(
            length,
            # Zeros, not empty memory: masked positions are still multiplied, and 0 x NaN is NaN.
            [torch.zeros(shape, dtype=g.dtype, device=device) for device in g.devices],
            [torch.zeros(shape, dtype=g.dtype, device=device) for device in g.devices],
            torch.zeros(lanes, length, dtype=torch.bool, device=g.devices[0]),
            list(range(lanes)),
            lanes,
        )
        self.slabs.append(slab)
        return slab
