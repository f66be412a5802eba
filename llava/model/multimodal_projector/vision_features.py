"""The output of a vision tower, as connectors read it."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class VisionFeatures:
    """Features of a batch of images at the tower's select layer.

    Letters: B images, P patches, D vision width, H vision heads.

    Attributes:
        hidden: `[B, 1+P, D]`, class token first; without the final layer norm. `[B, P, D]` without a class token.
        cls_attention: `[B, H, P]` float32, the class token's softmax attention to every patch in the block whose output
            is `hidden` (the class column stays in the softmax's denominator), or in the block of `mm_anchor_layer`
            where that is set; None unless requested.
        patch_keys: `[B, P, D]`, the patches' attention keys in the same block, all heads concatenated; None unless
            requested.
        has_class_token: False for towers that return patches only (S2).
    """

    hidden: torch.Tensor
    cls_attention: torch.Tensor | None = None
    patch_keys: torch.Tensor | None = None
    has_class_token: bool = True

    @property
    def patches(self) -> torch.Tensor:
        """`[B, P, D]`, row-major."""
        return self.hidden[:, 1:] if self.has_class_token else self.hidden

    def to(self, *args: Any, **kwargs: Any) -> "VisionFeatures":
        """Like `Tensor.to`, for a dtype or a device; the attention stays float32, because it is ranked.

        accelerate's hooks call it with the device of the next layer.
        """
        hidden = self.hidden.to(*args, **kwargs)
        attention = None if self.cls_attention is None else self.cls_attention.to(hidden.device)
        keys = None if self.patch_keys is None else self.patch_keys.to(hidden)
        return VisionFeatures(hidden, attention, keys, self.has_class_token)
