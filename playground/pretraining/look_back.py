"""Start a few attention heads as look-back heads: such a head attends to the token 1, 2 or 3 places before.

Looking something up in a text needs a head that tells every word what stood before it. Rotary positions make it easy to
write one down: with a component that all embeddings share, queries and keys can be the same for all tokens, and a key
turned by `offset` positions fits best exactly that far back. Everything stays trainable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

FREQUENCIES = 5  # the fastest rotary frequencies tell neighbours apart
SHARPNESS = 7.7  # length of a query or key per frequency
HEADS = ((0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 0, 1), (1, 1, 2))  # (layer, head, offset)


@torch.no_grad()
def add_look_back_heads(model: LlamaForCausalLM) -> None:
    """Overwrite the query and key weights of `HEADS`, after giving all embeddings a common component."""
    config = model.config
    embeddings = model.get_input_embeddings().weight  # [V, d]
    embeddings += config.initializer_range  # as long as the random part: half of the normalised square length
    common = (config.hidden_size / 2) ** 0.5  # what a normalised embedding has along `direction`
    direction = torch.full((config.hidden_size,), config.hidden_size**-0.5) / common
    size = config.hidden_size // config.num_attention_heads
    for layer, head, offset in HEADS:
        attention = model.model.layers[layer].self_attn
        rows = slice(head * size, (head + 1) * size)
        theta = config.rope_parameters["rope_theta"]
        attention.q_proj.weight[rows] = torch.outer(_turned(size, theta, 0), direction)
        attention.k_proj.weight[rows] = torch.outer(_turned(size, theta, offset), direction)


def _turned(size: int, theta: float, offset: int) -> Tensor:
    """A query or key vector, turned by `offset` positions; pair j is (j, j + size / 2), as in transformers."""
    angles = offset * theta ** (-torch.arange(FREQUENCIES) * 2 / size)
    vector = torch.zeros(size)
    vector[:FREQUENCIES] = SHARPNESS * angles.cos()
    vector[size // 2 : size // 2 + FREQUENCIES] = SHARPNESS * angles.sin()
    return vector
