"""The connectors as `llava.tools.cost` sees them: FLOPs, and the token counts that each can give."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava.program import RequestError
from llava.tools.flops import (
    CLIP_L_336,
    VisionShape,
    c_abstractor_flops,
    generator_flops,
    mlp_flops,
    resampler_flops,
)

if TYPE_CHECKING:
    from llava.tools.cost import Cost


def _mlp(cost: "Cost") -> int:
    return mlp_flops(cost.tokens, cost.vision.width, cost.llm.hidden_size)


def _resampled(cost: "Cost") -> int:
    return resampler_flops(cost.tokens, cost.vision, cost.resampler) + _mlp(cost)


def _convolved(cost: "Cost") -> int:
    return c_abstractor_flops(cost.tokens, cost.vision) + _mlp(cost)


def _side_by_side(cost: "Cost") -> int:
    return mlp_flops(cost.tokens, cost.vision.width * cost.vision.patches // cost.tokens, cost.llm.hidden_size)


def _generated(cost: "Cost") -> int:
    return generator_flops(cost.llm, cost.vision, cost.generator)


def _resampled_and_generated(cost: "Cost") -> int:
    return _resampled(cost) + _generated(cost)


def _none(vision: VisionShape) -> dict[int, int]:
    return dict.fromkeys(range(vision.patches + 2), 0)


def _any(vision: VisionShape) -> dict[int, int]:
    return {asked: asked for asked in range(1, vision.patches + 2)}


def _dominant_and_merged(vision: VisionShape) -> dict[int, int]:
    return {asked: asked for asked in range(3, vision.patches + 2)}


def _anchors(vision: VisionShape) -> dict[int, int]:
    heads = vision.heads
    beyond = (vision.patches // heads + 1) * heads + 1  # numbers are rounded down to a multiple of the heads
    return {asked: (asked - 1) // heads * heads + 1 for asked in range(heads + 1, beyond)}


def _anchors_and_rest(vision: VisionShape) -> dict[int, int]:
    most = vision.patches - vision.heads + 2  # one patch at least is left to be fused
    return {asked: anchors + 1 for asked, anchors in _anchors(vision).items() if anchors < most}


def _pooled(vision: VisionShape) -> dict[int, int]:
    return {cells + 1: cells + 1 for cells in _grids(vision)}


def _blocks(vision: VisionShape) -> dict[int, int]:
    return {cells + extra: cells for cells in _grids(vision) for extra in (1, 0)}


def _squares(vision: VisionShape) -> dict[int, int]:
    return {side**2 + extra: side**2 for side in range(1, vision.side + 1) for extra in (1, 0)}


def _grids(vision: VisionShape) -> list[int]:
    """Cells of the grids that whole square blocks of patches make, fewest first."""
    return [side**2 for side in range(1, vision.side + 1) if vision.side % side == 0]


@dataclass(frozen=True)
class ConnectorCost:
    """What a connector costs.

    Attributes:
        flops: FLOPs per picture.
        counts: how many tokens are handed over for each number that may be asked for; None: always every patch.
        gives_weights: whether the picture also (or only) becomes weights of the language model.
    """

    flops: Callable[["Cost"], int]
    counts: Callable[[VisionShape], dict[int, int]] | None = None
    gives_weights: bool = False


CONNECTOR_COSTS = {
    "acformer": ConnectorCost(_resampled, _anchors),
    "acformer_vlora": ConnectorCost(_resampled_and_generated, _anchors, gives_weights=True),
    "c_abstractor": ConnectorCost(_convolved, _squares),
    "evit": ConnectorCost(_mlp, _anchors_and_rest),
    "perceiver": ConnectorCost(_resampled, _any),
    "pixel_shuffle": ConnectorCost(_side_by_side, _blocks),
    "pooling": ConnectorCost(_mlp, _pooled),
    "pooling_pr": ConnectorCost(_resampled, _pooled),
    "random_pr": ConnectorCost(_resampled, _any),
    "top_p": ConnectorCost(_mlp, _anchors),
    "visionzip": ConnectorCost(_mlp, _dominant_and_merged),
    "vlora": ConnectorCost(_generated, _none, gives_weights=True),
}
ALIASES = {"pr": "perceiver"}
KNOWN_CONNECTORS = ["linear", "mlp<k>x_gelu", *CONNECTOR_COSTS, *ALIASES]


def connector_cost(name: str) -> ConnectorCost:
    """The entry of a connector.

    Raises:
        RequestError: the name is not known; the message lists those that are.
    """
    name = ALIASES.get(name, name)
    if name in CONNECTOR_COSTS:
        return CONNECTOR_COSTS[name]
    mlp = re.match(r"^mlp(\d+)x_gelu$", name)
    if name != "linear" and mlp is None:
        raise RequestError(f"Unknown connector {name!r}; known are {', '.join(KNOWN_CONNECTORS)}")
    depth = 1 if mlp is None else int(mlp.group(1))
    return ConnectorCost(lambda cost: mlp_flops(cost.tokens, cost.vision.width, cost.llm.hidden_size, depth))


def count_tokens(connector: str, asked: int, vision: VisionShape = CLIP_L_336) -> int:
    """Tokens that the connector hands to the language model when `asked` are asked for.

    Raises:
        RequestError: it cannot give that many; the message names the legal numbers.
    """
    counts = connector_cost(connector).counts
    if counts is None:
        return vision.patches
    given = counts(vision)
    if asked not in given:
        legal = [str(tokens) for tokens in sorted(set(given.values()))]
        shown = legal if len(legal) < 10 else [*legal[:4], "...", legal[-1]]
        raise RequestError(f"{connector} cannot give {asked} visual tokens; legal are {', '.join(shown)}")
    return given[asked]
