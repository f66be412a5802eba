"""VLoRA's generator: learned queries read the image and are mapped to matrices (arXiv 2405.20339).

Modules hold the parameters under their published names, stack by stack. The stacks are applied together, layer by
layer: all read the same image, so their keys and values are one matrix product, and what they do with their own
queries is one batched product each. (One product for the keys and values of all layers is slower: its result is large.)

Letters: S stacks, B images, N patches, w queries of a stack, g width.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Parameters of a multi-head attention under the names of torch's own module, with biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # q, k, v
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)


class Decoder(nn.Module):
    """Parameters of one pre-norm layer: among the queries, from the queries to the image, feed-forward."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.multihead_attn = Attention(width)
        self.linear1 = nn.Linear(width, ratio * width)
        self.linear2 = nn.Linear(ratio * width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)


class Stack(nn.Module):
    """Learned queries, decoder layers, and a head that makes a matrix of each query."""

    def __init__(self, num_queries: int, width: int, depth: int, ratio: int, out_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, num_queries, width))
        self.decoders = nn.ModuleList(Decoder(width, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.weights_head = nn.Linear(width, out_width)


def run_stacks(stacks: Sequence[Stack], image: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """Run all stacks on a batch of images.

    Args:
        stacks: of equal width, depth and number of queries.
        image: `[B, N, g]`.

    Returns:
        per stack `[B, w, out]`.
    """
    query = _together(stack.queries for stack in stacks).expand(-1, len(image), -1, -1)  # [S, B, w, g]
    for layer in zip(*(stack.decoders for stack in stacks), strict=True):
        normed = _norm(query, [d.norm1 for d in layer])
        query = query + _attend_to_themselves([d.self_attn for d in layer], normed, heads)
        normed = _norm(query, [d.norm2 for d in layer])
        query = query + _attend_to_image([d.multihead_attn for d in layer], normed, image, heads)
        inner = _linear(_norm(query, [d.norm3 for d in layer]), [d.linear1 for d in layer])
        query = query + _linear(F.gelu(inner), [d.linear2 for d in layer])
    query = _norm(query, [stack.norm for stack in stacks])
    return [stack.weights_head(own) for stack, own in zip(stacks, query, strict=True)]


def _attend_to_themselves(own: Sequence[Attention], query: torch.Tensor, heads: int) -> torch.Tensor:
    projected = _project(query, [a.in_proj_weight for a in own], [a.in_proj_bias for a in own])
    q, k, v = (_split_heads(part, heads) for part in projected.chunk(3, dim=-1))
    return _merge_heads(F.scaled_dot_product_attention(q, k, v), own)


def _attend_to_image(own: Sequence[Attention], query: torch.Tensor, image: torch.Tensor, heads: int) -> torch.Tensor:
    width = query.shape[-1]
    ask, *read = (slice(start, start + width) for start in (0, width, 2 * width))  # rows of in_proj: q; k, v
    weight = torch.cat([a.in_proj_weight[part] for part in read for a in own])
    bias = torch.cat([a.in_proj_bias[part] for part in read for a in own])
    projected = F.linear(image, weight, bias).unflatten(-1, (2, -1, width // heads))
    k, v = projected.permute(2, 0, 3, 1, 4)  # [B, S * heads, N, g / heads]
    q = _split_heads(_project(query, [a.in_proj_weight[ask] for a in own], [a.in_proj_bias[ask] for a in own]), heads)
    return _merge_heads(F.scaled_dot_product_attention(q, k, v), own)


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """`[S, B, w, g]` -> `[B, S * heads, w, g / heads]`: to attention, stacks are further heads."""
    return x.unflatten(-1, (heads, -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)


def _merge_heads(attended: torch.Tensor, own: Sequence[Attention]) -> torch.Tensor:
    """`_split_heads` undone, and every stack's output projection."""
    merged = attended.unflatten(1, (len(own), -1)).permute(1, 0, 3, 2, 4).flatten(3)
    return _linear(merged, [a.out_proj for a in own])


def _norm(x: torch.Tensor, norms: Sequence[nn.LayerNorm]) -> torch.Tensor:
    """Each stack's LayerNorm on `[S, B, w, g]`."""
    normed = F.layer_norm(x, x.shape[-1:], eps=norms[0].eps)
    scale, shift = (_together(part)[:, None, None] for part in ((n.weight for n in norms), (n.bias for n in norms)))
    return torch.addcmul(shift, normed, scale)


def _linear(x: torch.Tensor, own: Sequence[nn.Linear]) -> torch.Tensor:
    return _project(x, [m.weight for m in own], [m.bias for m in own])


def _project(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Each stack's matrix on `[S, B, w, in]` -> `[S, B, w, out]`."""
    bias = _together(biases).unsqueeze(1)
    return torch.baddbmm(bias, x.flatten(1, 2), _together(weights).transpose(1, 2)).unflatten(1, x.shape[1:3])


def _together(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """`[S, ...]`; nothing is copied where there is one stack only."""
    tensors = list(tensors)
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
