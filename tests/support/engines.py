"""Engines over tiny models, and what is asked of them."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from llava.inference import prepare_images
from llava.serve.engine.engine import Engine
from llava.serve.engine.generation import EngineSettings, GenerationRequest, Reply, ReplyEvent
from llava.serve.engine.sampling import SamplingSettings
from llava.tokenization import load_tokenizer
from tests.conftest import VECTORS
from tests.support import vlora_models

GREEDY = SamplingSettings(temperature=0.0)
PATIENCE = 120  # seconds
SETTINGS = {
    "max_rows": 3, "max_queue": 64, "cache_bytes": 64 * 2**20, "image_cache_bytes": 2**20, "prefill_chunk": 8,
    "context_length": 128,
}  # fmt: skip


def tokenizer() -> Any:
    return load_tokenizer(str(VECTORS / "llava/assets/tokenizer-llama"))


def build(projector: str = "mlp2x_gelu", **options: Any) -> Any:
    """A tiny random model; the working directory must be the LLaVA vectors."""
    return vlora_models.build(projector=projector, **options)


def endless(model: Any) -> Any:
    """The same model, whose replies end at their limit only."""
    model.generation_config.eos_token_id = []
    return model


def random_image(number: int) -> Image.Image:
    """Different for each number."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (40, 60, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@contextmanager
def engine(model: Any, **settings: Any) -> Iterator[Engine]:
    """An engine that is closed again; it must have given back every slot by then."""
    running = Engine(
        model, tokenizer(), model.get_vision_tower().image_processor, EngineSettings(**SETTINGS | settings)
    )
    try:
        yield running
    finally:
        running.close()
        assert running.num_slots_used == 0
        assert running.num_active == running.num_queued == 0


class Listener:
    """Keeps the events of one reply."""

    def __init__(self, running: Engine, request: GenerationRequest) -> None:
        self.events: queue.Queue[ReplyEvent] = queue.Queue()
        prepared = tuple(running.prepare(image) for image in request.images)
        self.reply: Reply = running.submit(replace(request, images=prepared), self.events.put)

    def next(self) -> ReplyEvent:
        return self.events.get(timeout=PATIENCE)

    def last(self) -> ReplyEvent:
        """Waits for the end."""
        while (event := self.next()).finish is None:
            pass
        return event

    @property
    def ids(self) -> list[int]:
        return self.reply.text.ids


def request(ids: list[int], *images: Image.Image, tokens: int = 12, **options: Any) -> GenerationRequest:
    """A greedy one, with its images as they are."""
    return GenerationRequest(ids, tokens, images, **{"sampling": GREEDY, **options})


@torch.no_grad()
def alone(model: Any, asked: GenerationRequest) -> list[int]:
    """What the model's own `generate` gives for a request, without the end token."""
    images, sizes = None, None
    if asked.images:
        images, sizes = prepare_images(list(asked.images), model.get_vision_tower().image_processor, model.config)
    ids = model.generate(
        torch.tensor([asked.input_ids]),
        images=images,
        image_sizes=sizes,
        num_visual_tokens=asked.num_visual_tokens,
        max_new_tokens=asked.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )[0].tolist()
    end = model.generation_config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
