"""What a vision tower hands to a connector."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class VisionFeatures:
    """Features of a batch of pictures at the tower's select layer.

    Letters: B pictures, P patches, D vision width, H vision heads.

    Attributes:
        hidden: `[B, 1+P, D]`, class token first; never post-normed (contract package.md 6).
        cls_attention: `[B, H, P]` float32, the class token's softmax attention to every patch in the block whose output
            is `hidden` (the class column stays in the softmax's denominator), or of `mm_anchor_layer` where that is
            set; None when nobody asked for it.
        patch_keys: `[B, P, D]`, the patches' attention keys in the same block, all heads side by side, or None.
    """

    hidden: torch.Tensor
    cls_attention: torch.Tensor | None = None
    patch_keys: torch.Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> "VisionFeatures":
        """As `Tensor.to`, for a dtype or a device; the attention stays float32, because it is ranked.

        accelerate's hooks call it with the device of the layer that comes next.
        """
        hidden = self.hidden.to(*args, **kwargs)
        attention = None if self.cls_attention is None else self.cls_attention.to(hidden.device)
        keys = None if self.patch_keys is None else self.patch_keys.to(hidden)
        return VisionFeatures(hidden, attention, keys)
