"""FLOPs of each connector, and the number of tokens that it returns."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from llava.program import RequestError
from llava.tools.flops import (
    CLIP_L_336,
    GENERATOR,
    RESAMPLER,
    GeneratorShape,
    LLMShape,
    ResamplerShape,
    VisionShape,
    c_abstractor_flops,
    generator_flops,
    mlp_flops,
    resampler_flops,
)


@dataclass(frozen=True)
class Shapes:
    """The sizes that the cost of a connector depends on."""

    llm: LLMShape
    vision: VisionShape = CLIP_L_336
    resampler: ResamplerShape = RESAMPLER
    generator: GeneratorShape = GENERATOR


def _mlp(tokens: int, shapes: Shapes, depth: int = 2) -> int:
    return mlp_flops(tokens, shapes.vision.width, shapes.llm.hidden_size, depth)


def _resampled(tokens: int, shapes: Shapes) -> int:
    return resampler_flops(tokens, shapes.vision, shapes.resampler) + _mlp(tokens, shapes)


def _convolved(tokens: int, shapes: Shapes) -> int:
    return c_abstractor_flops(tokens, shapes.vision) + _mlp(tokens, shapes)


def _shuffled(tokens: int, shapes: Shapes) -> int:
    return mlp_flops(tokens, shapes.vision.width * shapes.vision.patches // tokens, shapes.llm.hidden_size)


def _generated(tokens: int, shapes: Shapes) -> int:
    return generator_flops(shapes.llm, shapes.vision, shapes.generator)


def _resampled_and_generated(tokens: int, shapes: Shapes) -> int:
    return _resampled(tokens, shapes) + _generated(tokens, shapes)


FLOPS: dict[str, Callable[[int, Shapes], int]] = {
    "acformer": _resampled,
    "acformer_vlora": _resampled_and_generated,
    "c_abstractor": _convolved,
    "evit": _mlp,
    "perceiver": _resampled,
    "pixel_shuffle": _shuffled,
    "pooling": _mlp,
    "pooling_pr": _resampled,
    "pr": _resampled,
    "random_pr": _resampled,
    "top_p": _mlp,
    "visionzip": _mlp,
    "vlora": _generated,
}


def connector_flops(name: str, tokens: int, shapes: Shapes) -> int:
    """FLOPs of the connector for one image of `tokens` visual tokens.

    Raises:
        RequestError: there is no such connector, or its cost is not known.
    """
    from llava.model.multimodal_projector.mlp import as_mlp
    from llava.model.multimodal_projector.registry import MLP_NAME

    mlp = as_mlp(name)
    if mlp is not None:
        return _mlp(tokens, shapes, depth=int(MLP_NAME.match(mlp).group(1)))
    if name not in FLOPS:
        known = ", ".join(["linear", "mlp<k>x_gelu", *FLOPS])
        raise RequestError(f"The cost of the connector {name!r} is not known; known are {known}")
    return FLOPS[name](tokens, shapes)


def makes_weights(name: str) -> bool:
    """Whether the image also (or only) becomes weights of the language model.

    Raises:
        RequestError: there is no such connector.
    """
    from llava.model.multimodal_projector.builder import find_connector

    try:
        return find_connector(name).connector_class.space != "input"
    except ValueError as error:
        raise RequestError(str(error)) from error


def count_tokens(name: str, wanted: int, vision: VisionShape = CLIP_L_336) -> int:
    """The number of tokens that the connector returns when `wanted` are asked for.

    Raises:
        RequestError: it cannot return that many (names the legal numbers), or there is no such connector.
    """
    import torch

    from llava.model.multimodal_projector.builder import build_vision_projector

    config = SimpleNamespace(
        mm_projector_type=name,
        mm_num_visual_tokens=wanted,
        mm_pixel_shuffle_factor=vision.side // max(1, math.isqrt(wanted)) or None,
        mm_hidden_size=vision.width,
        hidden_size=vision.width,
        num_hidden_layers=1,
        vlora_pos_num=vision.patches,
    )
    try:
        with torch.device("meta"):
            connector = build_vision_projector(config)
        return connector.count_tokens(wanted, vision.heads, vision.patches)
    except ValueError as error:
        raise RequestError(str(error)) from error
