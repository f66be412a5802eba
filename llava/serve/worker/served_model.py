"""A model as the worker serves it: opened, running in an engine, with what its clients may ask of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.program import RequestError
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import ContextFullError
from llava.serve.worker.image_intake import ImageLimits
from llava.serve.worker.url_fetch import UrlFetcher
from llava.tokenization import tokenize_text, tokenizer_image_token

Result = TypeVar("Result")
MAX_NEW_TOKENS = 1024  # of one reply, whatever is asked for (contract serve.md 2.1)
MAX_STOP_LENGTH = 256  # characters of a stop string
INTAKE_THREADS = 4
LONGEST_TOKEN = 128  # characters; a prompt of more than this times the context cannot fit and is not even tokenized


@dataclass(frozen=True)
class ServedModel:
    """One model behind an engine.

    Attributes:
        name: as clients ask for it.
        template: conversation template for requests that come as messages.
    """

    name: str
    engine: Engine
    template: str
    limits: ImageLimits
    fetcher: UrlFetcher
    _intake: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(INTAKE_THREADS, "llava-intake"))

    @property
    def model(self) -> PreTrainedModel:
        return self.engine.model

    @property
    def is_multimodal(self) -> bool:
        return self.engine.image_processor is not None

    async def take_in(self, read: Callable[..., Result], *args: Any) -> Result:
        """Read a request in one of a few threads: large pictures take a gigabyte until they are scaled.

        Raises:
            BusyError: too many requests wait already; nothing is read.
            what `read` raises.
        """
        self.engine.check_room()
        return await asyncio.get_running_loop().run_in_executor(self._intake, read, *args)

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a finished prompt; IMAGE_TOKEN_INDEX for each `<image>` if the model takes pictures.

        Raises:
            ContextFullError: it is too long for any tokenizer to make it fit.
        """
        limit = self.engine.settings.context_length
        if len(prompt) > LONGEST_TOKEN * limit:
            raise ContextFullError(f"the prompt has {len(prompt)} characters, and the model's context {limit} tokens")
        if not self.is_multimodal:
            return tokenize_text(prompt, self.engine.tokenizer)
        if getattr(self.model.config, "mm_use_im_start_end", False):
            marker = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
            prompt = prompt.replace(DEFAULT_IMAGE_TOKEN, marker)
        return tokenizer_image_token(prompt, self.engine.tokenizer)

    def check_pictures(self, prompt: str, num_pictures: int) -> None:
        """Every `<image>` of a prompt needs a picture, or it would reach the embedding as id -200 (S-8).

        Raises:
            RequestError: the numbers differ.
        """
        num_markers = prompt.count(DEFAULT_IMAGE_TOKEN)
        if self.is_multimodal and num_markers != num_pictures:
            raise RequestError(
                f"Number of images does not match number of {DEFAULT_IMAGE_TOKEN} tokens in prompt: "
                f"{num_pictures} and {num_markers}"
            )

    def details(self) -> dict[str, Any]:
        """What a demo wants to know about the model; not part of upstream's interface."""
        config, has_pictures = self.model.config, self.is_multimodal
        return {
            "connector": getattr(config, "mm_projector_type", "linear") if has_pictures else None,
            "space": self.model.space if has_pictures else None,
            "num_visual_tokens": self.model.num_visual_tokens if has_pictures else 0,
            "is_elastic": self._is_elastic,
            "budgets": self._budgets(),
            "max_images": self.limits.max_images if has_pictures else 0,
            "has_anchors": has_pictures,
            "conv_mode": getattr(config, "conv_mode", None),
            "context_length": self.engine.settings.context_length,
        }

    @property
    def _is_elastic(self) -> bool:
        return self.is_multimodal and getattr(self.model.get_model().mm_projector, "is_elastic", False)

    def _budgets(self) -> list[int]:
        """Some budgets to offer: the model's own, and about a quarter, half and twice of it, as far as it can."""
        if not self.is_multimodal:
            return []
        own = self.model.num_visual_tokens
        if not self._is_elastic:
            return [own]
        tower = self.model.get_vision_tower()
        heads, patches = tower.config.num_attention_heads, tower.num_patches
        rounded = [1 + max(1, round(own * share / heads)) * heads for share in (0.25, 0.5, 2.0)]
        return sorted({own, *(budget for budget in rounded if budget <= patches)})

    @torch.inference_mode()
    def draw_anchors(self, picture: Image.Image, num_visual_tokens: int | None) -> tuple[Image.Image, str]:
        """The picture as the tower sees it, with the visual anchors of a budget circled, and a line that says so.

        Raises:
            RequestError: no tower, or a budget that it does not allow.
        """
        if not self.is_multimodal:
            raise RequestError(f"{self.name} is a plain language model: it looks at no picture")
        from llava.tools.visual_anchors import draw_anchor_pair

        tower = self.model.get_vision_tower()
        tokens = num_visual_tokens or default_anchor_budget(tower)
        try:
            return draw_anchor_pair(tower, picture, tokens)
        except ValueError as error:
            raise RequestError(str(error)) from error


def default_anchor_budget(tower: Any) -> int:
    """A quarter of the patches, at most 144 anchors, as a legal budget with the class token."""
    heads = tower.config.num_attention_heads
    return min(145, 1 + max(1, tower.num_patches // 4 // heads) * heads)
