"""Random-PR: random tokens of the image as queries of the resampler."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .registry import register_connector, setting
from .resampler import ResamplerConnector, ResamplerSettings
from .vision_features import VisionFeatures
from .visual_anchors import gather_tokens


@dataclass
class RandomPrConfig(ResamplerSettings):
    """Settings of the connector: config.json keys, defaults and command-line flags at once."""

    mm_random_seed: int = setting(0, "Seed of the draw that is used outside training.", at_load=True)


@register_connector("random_pr", RandomPrConfig)
class RandomPr(ResamplerConnector):
    """`z = F[class token and T-1 random patches, ascending]`; `y = MLP(Resampler(z, F))` -> `[B, T, d]`.

    In training every image of every step gets a fresh draw. Outside it there is one draw by `mm_random_seed` for all
    images, so that an answer does not depend on the batch.
    """

    is_elastic: ClassVar[bool] = True

    def __init__(self, settings: RandomPrConfig, vision_width: int, llm_width: int) -> None:
        super().__init__(settings, vision_width, llm_width)
        self.seed = settings.mm_random_seed

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        _check_count(wanted, num_patches)
        return wanted

    def queries(self, media: torch.Tensor, features: VisionFeatures, num_visual_tokens: int) -> torch.Tensor:
        batch, num_patches = media.shape[0], media.shape[1] - 1
        _check_count(num_visual_tokens, num_patches)
        if self.training:
            scores = torch.rand(batch, num_patches, device=media.device)
        else:
            scores = _fixed_scores(self.seed, num_patches, media.device).expand(batch, -1)
        drawn = scores.topk(num_visual_tokens - 1, dim=1).indices.sort(dim=1).values + 1
        return gather_tokens(media, torch.cat([drawn.new_zeros(batch, 1), drawn], dim=1))


def _check_count(num_visual_tokens: int, num_patches: int) -> None:
    if not 1 <= num_visual_tokens <= num_patches + 1:
        raise ValueError(
            f"mm_num_visual_tokens {num_visual_tokens} cannot be drawn from the class token and {num_patches} patches. "
            f"Legal values for this tower are 1 to {num_patches + 1}"
        )


def _fixed_scores(seed: int, num_patches: int, device: torch.device) -> torch.Tensor:
    """`[P]` numbers that depend on the seed only, drawn on the CPU so that every device has the same."""
    return torch.rand(num_patches, generator=torch.Generator().manual_seed(seed)).to(device)
