"""A model as a worker serves it: loaded, running in an engine, with the answers to questions about it."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.chat import image_marker, infer_template
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.inference import inference_options
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.program import RequestError
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import ContextFullError, EngineSettings
from llava.serve.image_limits import ImageLimits
from llava.serve.worker.options import ServingOptions
from llava.serve.worker.url_fetch import UrlFetcher
from llava.tokenization import tokenize_text, tokenizer_image_token

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
GIB = 2**30
PARSER_THREADS = 4  # a large image takes a gigabyte until it is scaled down
LONGEST_TOKEN = 128  # characters; a prompt of more than this times the context cannot fit and is not tokenized


@dataclass(frozen=True)
class ServedModel:
    """One model behind an engine.

    Attributes:
        name: as clients ask for it.
        engine: generates the replies.
        template: conversation template of requests that come as messages.
        limits: on images.
        fetcher: of images at web addresses.
    """

    name: str
    engine: Engine
    template: str
    limits: ImageLimits
    fetcher: UrlFetcher
    _parsers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(PARSER_THREADS, "llava-parser"))

    @property
    def model(self) -> PreTrainedModel:
        return self.engine.model

    @property
    def is_multimodal(self) -> bool:
        """Whether the model takes images; a property of the model, not of its name."""
        return self.engine.image_processor is not None

    async def parse(self, parse: Callable[..., Result], *args: Any) -> Result:
        """Run a function that parses a request in one of a few threads; the request holds a place in the queue.

        Raises:
            BusyError: the queue is full; nothing is parsed.
            Exception: the error of the function.
        """
        with self.engine.reserve():
            return await asyncio.get_running_loop().run_in_executor(self._parsers, parse, *args)

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a complete prompt; IMAGE_TOKEN_INDEX for each `<image>` if the model takes images.

        Raises:
            ContextFullError: it is too long for any tokenizer to make it fit.
        """
        limit = self.engine.settings.context_length
        if len(prompt) > LONGEST_TOKEN * limit:
            raise ContextFullError(f"the prompt has {len(prompt)} characters, and the model's context {limit} tokens")
        if not self.is_multimodal:
            return tokenize_text(prompt, self.engine.tokenizer)
        prompt = prompt.replace(DEFAULT_IMAGE_TOKEN, image_marker(self.model.config))
        return tokenizer_image_token(prompt, self.engine.tokenizer)

    def check_markers(self, prompt: str, num_images: int) -> None:
        """Check that a prompt has one `<image>` per image; others would be looked up as token id -200.

        Raises:
            RequestError: the numbers differ; the text is upstream's.
        """
        num_markers = prompt.count(DEFAULT_IMAGE_TOKEN)
        if self.is_multimodal and num_markers != num_images:
            raise RequestError(
                f"Number of images does not match number of {DEFAULT_IMAGE_TOKEN} tokens in prompt: "
                f"{num_images} and {num_markers}"
            )

    def details(self) -> dict[str, Any]:
        """What the demo asks about a model; not part of upstream's interface."""
        config, takes_images = self.model.config, self.is_multimodal
        return {
            "connector": getattr(config, "mm_projector_type", "linear") if takes_images else None,
            "space": self.model.space if takes_images else None,
            "num_visual_tokens": self.model.num_visual_tokens if takes_images else 0,
            "is_elastic": self._is_elastic,
            "budgets": self._budgets(),
            "max_images": self.limits.max_images if takes_images else 0,
            "has_anchors": takes_images,
            "conv_mode": getattr(config, "conv_mode", None),
            "context_length": self.engine.settings.context_length,
        }

    @property
    def _is_elastic(self) -> bool:
        return self.is_multimodal and getattr(self.model.get_model().mm_projector, "is_elastic", False)

    def _budgets(self) -> list[int]:
        """Some budgets to offer: the model's own, and about a quarter, half and twice of it, if possible."""
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
    def draw_anchors(self, image: Image.Image, num_visual_tokens: int | None) -> tuple[Image.Image, str]:
        """The image as the tower sees it, with the visual anchors of a budget circled, and a caption.

        Raises:
            RequestError: no tower, or a budget that it does not allow.
        """
        if not self.is_multimodal:
            raise RequestError(f"{self.name} is a plain language model: it takes no images")
        from llava.tools.anchor_drawing import draw_anchor_pair

        tower = self.model.get_vision_tower()
        tokens = num_visual_tokens or default_anchor_budget(tower)
        try:
            return draw_anchor_pair(tower, image, tokens)
        except ValueError as error:
            raise RequestError(str(error)) from error


def default_anchor_budget(tower: Any) -> int:
    """A quarter of the patches, at most 144 anchors, as a valid budget with the class token."""
    heads = tower.config.num_attention_heads
    return min(145, 1 + max(1, tower.num_patches // 4 // heads) * heads)


def load_served_model(
    model_path: str,
    model_base: str | None,
    name: str,
    load_8bit: bool,
    load_4bit: bool,
    device: str,
    use_flash_attn: bool,
    options: ServingOptions,
) -> ServedModel:
    """Load a model and start its engine.

    Args:
        model_path, model_base, load_8bit, load_4bit, device, use_flash_attn: see `load_pretrained_model`.
        name: as clients ask for it.
        options: of the engine and for images.

    Raises:
        RequestError: the model cannot run on this machine.
        Exception: what `load_pretrained_model` raises.
    """
    base = None if model_base is None else os.path.expanduser(model_base)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        *(os.path.expanduser(model_path), base, get_model_name_from_path(model_path), load_8bit, load_4bit),
        use_flash_attn=use_flash_attn,
        **inference_options(device),
        **options.overrides,
    )
    settings = EngineSettings(
        max_rows=options.max_rows,
        max_queue=options.max_waiting,
        cache_bytes=default_cache_bytes(model) if options.cache_gb is None else int(options.cache_gb * GIB),
        image_cache_bytes=int(options.image_cache_gb * GIB),
        prefill_chunk=options.prefill_chunk or (512 if model.device.type == "cuda" else 128),
        context_length=getattr(model.config, "max_position_embeddings", None) or 2048,
    )
    logger.info("Engine: %s", settings)
    engine = Engine(model, tokenizer, image_processor, settings)
    _warm_up(engine, is_quantised=load_8bit or load_4bit)
    fetcher = UrlFetcher(options.url_hosts, options.limits.max_bytes)
    return ServedModel(name, engine, infer_template(name, model.config), options.limits, fetcher)


def _warm_up(engine: Engine, is_quantised: bool) -> None:
    """Generate a few tokens.

    Raises:
        RequestError: the model cannot run here, most often in 4 or 8 bits with a bitsandbytes that lacks this device.
    """
    try:
        engine.warm_up()
    except Exception as error:
        engine.close()
        remedy = "update bitsandbytes (extra 'quant'), or leave out --load-4bit and --load-8bit" if is_quantised else ""
        raise RequestError(
            f"the model is loaded but cannot run on this machine: {error}{'; ' if remedy else ''}{remedy}"
        ) from error


def default_cache_bytes(model: PreTrainedModel) -> int:
    """Room for keys and values: four fifths of a GPU's free memory, else a quarter of the free main memory."""
    if model.device.type == "cuda":
        free = sum(torch.cuda.mem_get_info(i)[0] for i in {p.device.index for p in model.parameters()})
        return int(free * 0.8)
    import psutil

    return min(psutil.virtual_memory().available // 4, 8 * GIB)
