"""Uses every connector of a copy of their folder, named `copied`; run as a program, in any environment with torch."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from copied.builder import build_vision_projector
from copied.perceptual_weights import BoundWeights, PerceptualWeights, install_hooks
from copied.registry import CONNECTORS, find_connector
from copied.vision_features import VisionFeatures
from copied.weight_merging import merged
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 32


class Attention(nn.Module):
    """The projections of a decoder layer; no position reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states
        return self.o_proj(torch.tanh(self.q_proj(x) + self.k_proj(x)) * self.v_proj(x))


class Layer(nn.Module):
    """A decoder layer that hands `perceptual_weights` to its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = x + self.self_attn(hidden_states=x, **kwargs)
        return x + self.mlp(x)


def decode(layers: nn.ModuleList, x: torch.Tensor, bound: BoundWeights, recompute: bool = False) -> torch.Tensor:
    for layer in layers:
        if recompute:
            x = checkpoint(layer, x, perceptual_weights=bound, use_reentrant=False)
        else:
            x = layer(x, perceptual_weights=bound)
    return x


def check_weights(weights: PerceptualWeights, parameters: list[nn.Parameter]) -> None:
    """Through hooks, recomputed and merged, the weights of an image do the same."""
    layers, x = nn.ModuleList(Layer() for _ in range(2)), torch.randn(1, 5, WIDTH)
    one = weights.for_rows([[0]])
    bound = one.bind(torch.float32)
    install_hooks(layers, bound)
    without = decode(layers, x, BoundWeights((), None, 1))
    plain, recomputed = decode(layers, x, bound), decode(layers, x, bound, recompute=True)
    assert not torch.allclose(plain, without, atol=1e-2), "the weights change nothing"
    both = [torch.autograd.grad(y.sum(), parameters, retain_graph=True) for y in (plain, recomputed)]
    for expected, found in zip(*both):
        torch.testing.assert_close(found, expected)
    projection = layers[0].self_attn.o_proj
    assert torch.equal(projection(x), F.linear(x, projection.weight)), "recomputation left weights behind"
    with merged(layers, one) as rest, torch.no_grad():
        torch.testing.assert_close(decode(layers, x, rest.bind(torch.float32)), plain)


def check_connector(name: str, dtype: torch.dtype) -> None:
    """Training in float32, evaluation in bfloat16.

    No training in bfloat16: the CPU's backward pass of its attention corrupts memory in torch 2.1.
    """
    config = SimpleNamespace(
        mm_projector_type=name, mm_num_visual_tokens={"pooling": 5, "pooling_pr": 5, "pixel_shuffle": 4}.get(name, 9),
        mm_hidden_size=32, hidden_size=WIDTH, num_attention_heads=4, num_hidden_layers=2, vlora_pos_num=16,
        vlora_dim=16, vlora_depth=1, vlora_heads=2,
        vlora_type="qkvo" if name == "vlora" else "qkvom",  # without m, recomputation can stop inside the MLP
    )  # fmt: skip
    connector = build_vision_projector(config).to(dtype).train(dtype == torch.float32)
    connector.check_tower(num_heads=4, num_patches=16)
    for key, parameter in connector.named_parameters():
        if "Bs" in key:  # zero at first: the weights would change nothing
            nn.init.normal_(parameter, std=0.1)
    hidden = torch.randn(2, 17, 32, dtype=dtype, requires_grad=True)
    result = connector(VisionFeatures(hidden, torch.rand(2, 4, 16), torch.randn(2, 16, 32, dtype=dtype)))
    space, parameters = find_connector(name).connector_class.space, list(connector.parameters())
    tokens, weights = {"input": (result, None), "parameter": (None, result)}.get(space, result)
    made = []
    if tokens is not None:
        assert tokens.shape == (2, connector.num_visual_tokens, WIDTH), name
        made.append(tokens)
    if weights is not None:
        made += [*weights.inputs.values(), *weights.outputs.values()]
    assert all(y.dtype == dtype and y.isfinite().all() for y in made), name
    if dtype == torch.bfloat16:
        return
    grads = torch.autograd.grad(sum(y.square().sum() for y in made), [hidden, *parameters], retain_graph=True)
    assert all(grad.isfinite().all() for grad in grads), name
    if weights is not None:
        check_weights(weights, parameters if tokens is None else list(connector.weights.parameters()))


torch.manual_seed(0)
for name in [*CONNECTORS, "mlp2x_gelu"]:
    if "<k>" not in name:
        for dtype in (torch.float32, torch.bfloat16):
            check_connector(name, dtype)
print(len(CONNECTORS))
