"""Counting what trains, and running tower and connector without data."""

import copy

import torch
from torch import nn

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.registry import Connector
from llava.tools.fitting.states import Parameters
from llava.tools.fitting.traced import TracedMemory, trace_connector, trace_tower


def count_parameters(model: nn.Module, frozen_value: int) -> Parameters:
    """The parameters of a model by `requires_grad`.

    Args:
        frozen_value: bytes of a frozen one.
    """
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    frozen = sum(p.numel() for p in named.values()) - sum(p.numel() for p in trained.values())
    layers = [name for name in trained if ".layers." in name and "vision_tower" not in name and "mm_proj" not in name]
    numbers = [int(name.split(".layers.")[1].split(".")[0]) for name in layers]
    first, last = min(numbers, default=0), max(numbers, default=0)

    def count(*parts: str) -> int:
        return sum(p.numel() for name, p in trained.items() if any(part in name for part in parts))

    return Parameters(
        trained=sum(p.numel() for p in trained.values()),
        frozen=frozen,
        frozen_bytes=frozen_value * frozen,
        largest=max((p.numel() for p in trained.values()), default=0),
        last=count("lm_head", f".layers.{last}.mlp.down_proj") if layers else 0,
        late=(
            count(f".layers.{first}.", "embed_tokens", "mm_projector", "vision_tower")
            - count(f".layers.{first}.mlp.down_proj")
            if layers
            else count("mm_projector", "vision_tower")
        ),
    )


def trace_on_meta(
    tower: CLIPVisionTower, connector: Connector, images: int, dtype: torch.dtype
) -> tuple[TracedMemory, TracedMemory]:
    """Memory of tower and connector for a batch of images; modules with data are copied without it."""
    tower, connector = (m if next(m.parameters()).is_meta else copy.deepcopy(m).to("meta") for m in (tower, connector))
    config = tower.config
    shape = (config.hidden_size, config.num_attention_heads, tower.num_patches)
    return trace_tower(tower, connector, images, dtype), trace_connector(connector, *shape, images, dtype)
