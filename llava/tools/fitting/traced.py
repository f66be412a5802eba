"""Memory of the vision tower and the connector: their own code runs on tensors without data, and is counted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.utils._pytree import tree_iter

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.registry import Connector
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.tools.fitting.storages import LiveStorages


@dataclass(frozen=True)
class TracedMemory:
    """Bytes beside parameters.

    Attributes:
        saved: alive after the forward pass: the result, and what the backward pass needs, inputs included.
        forward_peak: the most during the forward pass.
        backward_peak: the most during the backward pass, gradients of the parameters included; 0 without one.
    """

    saved: int
    forward_peak: int
    backward_peak: int = 0


class _Method(nn.Module):
    """A method of a module as a module, since `functional_call` replaces the parameters of modules."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any) -> Any:
        return self.method(*args)


def trace(
    module: nn.Module, method: Callable[..., Any], dtype: torch.dtype, make_inputs: Callable[[], Iterable[Any]]
) -> TracedMemory:
    """Run a method of a module on tensors without data, and its backward pass if any parameter requires a gradient.

    Args:
        method: bound; called with the inputs.
        dtype: of the parameters.
        make_inputs: makes them.
    """
    with FakeTensorMode():
        state = {
            f"module.{name}": torch.empty(p.shape, dtype=dtype if p.is_floating_point() else p.dtype).requires_grad_(
                p.requires_grad
            )
            for name, p in [*module.named_parameters(), *module.named_buffers()]
        }
        with LiveStorages(known=state.values()) as storages:
            outputs = functional_call(_Method(module, method), state, tuple(make_inputs()))
            saved, forward_peak = storages.live, storages.peak
            differentiable = [x for x in tree_iter(outputs) if isinstance(x, torch.Tensor) and x.requires_grad]
            if not differentiable:
                return TracedMemory(saved, forward_peak)
            storages.peak = storages.live
            gradients = [torch.empty_like(x) for x in differentiable]
            edges = [get_gradient_edge(x) for x in differentiable]
            del outputs, differentiable  # what comes after the module has consumed them
            torch.autograd.backward(edges, gradients)
            return TracedMemory(saved, forward_peak, storages.peak)


def trace_connector(
    connector: Connector, vision_width: int, heads: int, patches: int, images: int, dtype: torch.dtype
) -> TracedMemory:
    """The connector on the features of a batch of images."""

    def features() -> list[VisionFeatures]:
        hidden = torch.empty(images, patches + 1, vision_width, dtype=dtype)
        cls_attention = torch.empty(images, heads, patches) if connector.needs_cls_attention else None
        keys = torch.empty(images, patches, vision_width, dtype=dtype) if connector.needs_patch_keys else None
        return [VisionFeatures(hidden, cls_attention, keys)]

    return trace(connector, connector.forward, dtype, features)


def trace_tower(tower: CLIPVisionTower, connector: Connector, images: int, dtype: torch.dtype) -> TracedMemory:
    """The vision tower on a batch of images, with what the connector asks of it."""

    def pixels() -> list[Any]:
        side = tower.config.image_size
        batch = torch.empty(images, 3, side, side, dtype=dtype)
        return [batch, connector.needs_cls_attention, connector.needs_patch_keys]

    return trace(tower, tower.encode, dtype, pixels)
