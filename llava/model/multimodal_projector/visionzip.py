"""VisionZip: the patches the class token attends to, and merged ones for the rest (arXiv 2412.04467)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from .class_attention import full_precision
from .registry import register_connector, setting
from .token_reducer import AnchorSettings, TokenReducer, TokenSettings
from .vision_features import VisionFeatures
from .visual_anchors import gather_tokens, rank_patches


@dataclass
class VisionZipConfig(AnchorSettings, TokenSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    mm_contextual_tokens: int | None = setting(
        None, "How many of the tokens are merged ones; by default 10 of 64, the paper's share.", at_load=True, minimum=1
    )


@register_connector("visionzip", VisionZipConfig)
class VisionZip(TokenReducer):
    """`y = MLP([F_cls; dominant patches; contextual tokens])`, F `[B, 1+P, D]` -> `[B, T, d]`.

    Dominant are the patches with the largest class attention (mean over heads), in ascending order. Of the others,
    evenly spaced ones become targets; every one left joins the target with the most similar attention key (cosine), and
    a contextual token is the mean of a target and all that joined it. Similarities and means are taken in float32: keys
    have so much in common that half precision could not tell them apart. Needs no training.
    """

    needs_cls_attention: ClassVar[bool] = True
    needs_patch_keys: ClassVar[bool] = True

    def __init__(self, settings: VisionZipConfig, vision_width: int, llm_width: int) -> None:
        super().__init__(settings, vision_width, llm_width)
        self.contextual_tokens = settings.mm_contextual_tokens

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        self._split(wanted, num_patches)
        return wanted

    def _split(self, num_visual_tokens: int, num_patches: int) -> tuple[int, int]:
        """Dominant patches and contextual tokens of a budget."""
        contextual = self.contextual_tokens
        if contextual is None:
            contextual = max(1, round(num_visual_tokens * 10 / 64))
        dominant = num_visual_tokens - 1 - contextual
        if contextual > num_patches - 1:
            raise ValueError(f"mm_contextual_tokens is {contextual}; the tower's patches allow {num_patches - 1}")
        if dominant < 1 or dominant + contextual > num_patches:
            raise ValueError(
                f"mm_num_visual_tokens {num_visual_tokens} with {contextual} contextual tokens leaves {dominant} "
                f"dominant patches of {num_patches}. Legal values for this tower are "
                f"{2 + (self.contextual_tokens or 1)} to {num_patches + 1} (class token, 1 or more dominant patches, "
                "1 or more contextual tokens)"
            )
        return dominant, contextual

    def reduce(self, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        hidden, keys = features.hidden, features.patch_keys
        num_patches = hidden.shape[1] - 1
        num_dominant, num_contextual = self._split(num_visual_tokens, num_patches)
        ranked = rank_patches(features.cls_attention.mean(dim=1))  # [B, P]
        dominant = ranked[:, :num_dominant].sort(dim=1).values
        others = ranked[:, num_dominant:].sort(dim=1).values  # [B, R]

        spacing = others.shape[1] // num_contextual
        is_target = torch.zeros(others.shape[1], dtype=torch.bool, device=hidden.device)
        is_target[: spacing * num_contextual : spacing] = True
        order = is_target.long().argsort(descending=True, stable=True)  # targets first, each part ascending
        targets, joining = others[:, order].split([num_contextual, others.shape[1] - num_contextual], dim=1)

        with full_precision(hidden.device):
            normed = F.normalize(keys.float(), dim=-1)
            similarity = gather_tokens(normed, joining) @ gather_tokens(normed, targets).transpose(1, 2)
            joins = F.one_hot(similarity.argmax(dim=-1), num_contextual).float().transpose(1, 2)  # [B, C, R - C]
            total = gather_tokens(hidden, targets + 1).float() + joins @ gather_tokens(hidden, joining + 1).float()
            contextual = (total / (1 + joins.sum(dim=2, keepdim=True))).to(hidden.dtype)
        return torch.cat([hidden[:, :1], gather_tokens(hidden, dominant + 1), contextual], dim=1)
