"""Write one image's perceptual weights into the matrices for some time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .perceptual_weights import PROJECTIONS, PerceptualWeights


@contextmanager
def merged(layers: nn.ModuleList, weights: PerceptualWeights) -> Iterator[PerceptualWeights]:
    """Inside the block `W += B A^T` in q, k, v and o; afterwards every matrix is restored bit for bit.

    Merging costs `2 d^2 r` per matrix, the low-rank path `4 d r` per token and matrix: it pays after d / 2 tokens.
    Other threads that use the model meanwhile see the image too.

    Yields:
        The weights that still have to be bound: m, a path beside the MLP that no matrix can absorb.

    Raises:
        ValueError: more than one image, rows without one, or a quantised or offloaded language model.
    """
    if weights.rows is not None or len(next(iter(weights.inputs.values()))) != 1:
        raise ValueError("merge_weights needs one image for all rows; leave it out to give every row its own")
    targets = {
        (index, letter): _matrix(getattr(layer.self_attn, PROJECTIONS[letter]))
        for index, layer in enumerate(layers)
        for letter in weights.of_layer(index)
        if letter in PROJECTIONS
    }
    saved = {place: matrix.detach().clone() for place, matrix in targets.items()}
    try:
        with torch.no_grad():
            for (index, letter), matrix in targets.items():
                a, b = weights.of_layer(index)[letter]
                matrix.add_((b @ a[0].T).to(matrix))
        yield weights.only("m")
    finally:
        with torch.no_grad():
            for place, matrix in targets.items():
                matrix.copy_(saved[place])


def _matrix(projection: nn.Module) -> torch.Tensor:
    weight = getattr(projection, "base_layer", projection).weight
    if not weight.is_floating_point():
        raise ValueError("merge_weights cannot write into a quantised language model; leave it out")
    if weight.is_meta:
        raise ValueError("merge_weights cannot write into a language model that is offloaded; leave it out")
    return weight
