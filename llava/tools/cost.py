"""What a connector costs in arithmetic and cache, before anything is run (contract acformer.md 9).

    python -m llava.tools.cost --llm 7b --connector acformer --tokens 145
    python -m llava.tools.cost --llm 13b --connector pooling --tokens 65 --text-tokens 128 --batch 16
    python -m llava.tools.cost --llm path/to/model --connector pixel_shuffle --tokens 144

`--llm` takes `7b`, `13b`, or the folder or config.json of any Llama-like model. The program prints the
FLOPs of a prefill and of a stage-1 training step (with recomputation of activations and without), the bytes of the
key/value cache, and the speed-up over `mlp2x_gelu`, which hands over every patch.

The formulas are those of `llava/tools/flops.py`. Read as follows they give every number of the contract, to its last
digit:

* vision tower: 23 of CLIP-L's 24 blocks for the MLP as for every connector (select layer -2), patch embedding included;
* logits of the last position only in a prefill, of all positions in a training step;
* a training step runs the frozen language model twice (forward, backward to the activations), or three times when
  activations are recomputed; the contract's 13B row is without recomputation.

Plain arithmetic on small dataclasses, no torch: it answers at once, and `scripts/bench` uses it too.
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from llava.program import RequestError, run_program
from llava.tools.flops import (
    CLIP_L_336,
    RESAMPLER,
    LLMShape,
    ResamplerShape,
    VisionShape,
    c_abstractor_flops,
    llm_forward_flops,
    mlp_flops,
    resampler_flops,
    vit_flops,
)

BASELINE = "mlp2x_gelu"
LLMS = {
    "7b": LLMShape(4096, 32, 11008, 32000, heads=32, kv_heads=32, head_dim=128),
    "13b": LLMShape(5120, 40, 13824, 32000, heads=40, kv_heads=40, head_dim=128),
}


def read_llm(name: str) -> LLMShape:
    """The shape of `7b`, `13b`, or of the model whose folder or config.json `name` is.

    Raises:
        RequestError: neither a known name nor a readable configuration of a Llama-like model.
    """
    if name.lower() in LLMS:
        return LLMS[name.lower()]
    path = os.path.join(name, "config.json") if os.path.isdir(name) else name
    if not os.path.isfile(path):
        raise RequestError(f"Unknown language model {name!r}: use {', '.join(LLMS)}, or a config.json or its folder")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        heads = config["num_attention_heads"]
        return LLMShape(
            hidden_size=config["hidden_size"],
            layers=config["num_hidden_layers"],
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        )
    except json.JSONDecodeError as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    except KeyError as error:
        raise RequestError(f"{path} has no {error}: it is not the configuration of a Llama-like model") from error


def _mlp_only(tokens: int, llm_width: int, vision: VisionShape, _: ResamplerShape) -> int:
    return mlp_flops(tokens, vision.width, llm_width)


def _resampled(tokens: int, llm_width: int, vision: VisionShape, resampler: ResamplerShape) -> int:
    return resampler_flops(tokens, vision, resampler) + mlp_flops(tokens, vision.width, llm_width)


def _convolved(tokens: int, llm_width: int, vision: VisionShape, _: ResamplerShape) -> int:
    return c_abstractor_flops(tokens, vision) + mlp_flops(tokens, vision.width, llm_width)


def _side_by_side(tokens: int, llm_width: int, vision: VisionShape, _: ResamplerShape) -> int:
    return mlp_flops(tokens, vision.width * vision.patches // tokens, llm_width)


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
        flops: FLOPs per picture from (tokens, d, vision, resampler).
        counts: how many tokens are handed over for each number that may be asked for; None: always every patch.
    """

    flops: Callable[[int, int, VisionShape, ResamplerShape], int]
    counts: Callable[[VisionShape], dict[int, int]] | None = None


CONNECTOR_COSTS = {
    "acformer": ConnectorCost(_resampled, _anchors),
    "c_abstractor": ConnectorCost(_convolved, _squares),
    "evit": ConnectorCost(_mlp_only, _anchors_and_rest),
    "perceiver": ConnectorCost(_resampled, _any),
    "pixel_shuffle": ConnectorCost(_side_by_side, _blocks),
    "pooling": ConnectorCost(_mlp_only, _pooled),
    "pooling_pr": ConnectorCost(_resampled, _pooled),
    "random_pr": ConnectorCost(_resampled, _any),
    "top_p": ConnectorCost(_mlp_only, _anchors),
    "visionzip": ConnectorCost(_mlp_only, _dominant_and_merged),
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
    return ConnectorCost(lambda tokens, llm_width, vision, _: mlp_flops(tokens, vision.width, llm_width, depth))


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


@dataclass(frozen=True)
class Cost:
    """What one picture with its text costs; `tokens` is what the connector really hands over (`count_tokens`)."""

    connector: str
    tokens: int
    text_tokens: int
    llm: LLMShape
    vision: VisionShape = CLIP_L_336
    resampler: ResamplerShape = RESAMPLER

    @property
    def positions(self) -> int:
        return self.tokens + self.text_tokens

    @property
    def tower_flops(self) -> int:
        return vit_flops(self.vision.blocks - 1, self.vision)  # select layer -2

    @property
    def connector_flops(self) -> int:
        return connector_cost(self.connector).flops(self.tokens, self.llm.hidden_size, self.vision, self.resampler)

    @property
    def prefill_flops(self) -> int:
        return self.tower_flops + self.connector_flops + llm_forward_flops(self.llm, self.positions, logits=1)

    def stage1_step_flops(self, recompute: bool) -> int:
        """Tower forward, connector forward and backward, frozen language model forward and backward to activations."""
        passes = 3 if recompute else 2
        forward = llm_forward_flops(self.llm, self.positions, logits=self.positions)
        return self.tower_flops + 3 * self.connector_flops + passes * forward

    def cache_bytes(self, bytes_per_value: int = 2) -> int:
        """Keys and values of all layers after the prefill."""
        return 2 * self.llm.layers * self.llm.kv_heads * self.llm.head_dim * self.positions * bytes_per_value


def report(cost: Cost, baseline: Cost, batch: int, bytes_per_value: int) -> str:
    """The costs of `batch` pictures side by side, as a table for a terminal."""

    def row(name: str, ours: float, theirs: float, unit: float) -> str:
        ratio = f"{theirs / ours:.2f}x" if ours else "-"
        return f"{name:<40}{batch * ours / unit:>14,.1f}{batch * theirs / unit:>16,.1f}{ratio:>10}"

    forward = [llm_forward_flops(c.llm, c.positions, logits=1) for c in (cost, baseline)]
    cache = [c.cache_bytes(bytes_per_value) for c in (cost, baseline)]
    lines = [
        f"{'':<40}{cost.connector:>14}{baseline.connector:>16}{'ratio':>10}",
        f"{'visual + text tokens':<40}{_tokens(cost):>14}{_tokens(baseline):>16}",
        row("vision tower, GFLOP", cost.tower_flops, baseline.tower_flops, 1e9),
        row("connector forward, GFLOP", cost.connector_flops, baseline.connector_flops, 1e9),
        row("language model prefill, GFLOP", *forward, 1e9),
        row("prefill in all, GFLOP", cost.prefill_flops, baseline.prefill_flops, 1e9),
        row("stage-1 step, GFLOP", cost.stage1_step_flops(False), baseline.stage1_step_flops(False), 1e9),
        row("  with recomputation, GFLOP", cost.stage1_step_flops(True), baseline.stage1_step_flops(True), 1e9),
        row(f"key/value cache ({bytes_per_value} bytes a value), MiB", *cache, 2**20),
    ]
    return "\n".join(lines)


def _tokens(cost: Cost) -> str:
    return f"{cost.tokens} + {cost.text_tokens}"


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def parse_arguments(args: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="7b", help=f"{', '.join(LLMS)}, or a config.json or its folder")
    parser.add_argument("--connector", default="acformer", help=", ".join(KNOWN_CONNECTORS))
    parser.add_argument("--tokens", type=positive, default=145, help="visual tokens per picture")
    parser.add_argument("--text-tokens", type=positive, default=64, help="text tokens beside one picture")
    parser.add_argument("--batch", type=positive, default=1, help="pictures")
    parser.add_argument("--kv-bytes", type=positive, default=2, help="bytes of one value in the cache; 2 is bf16")
    return parser.parse_args(args)


def main() -> None:
    """Print the costs of the connector that the command line names beside those of `mlp2x_gelu`."""
    args = parse_arguments()
    llm = read_llm(args.llm)
    cost, baseline = (
        Cost(name, count_tokens(name, args.tokens), args.text_tokens, llm) for name in (args.connector, BASELINE)
    )
    print(f"Language model {args.llm} ({llm.layer_weights / 1e9:.3f} G weights in its layers), CLIP ViT-L/14-336,")
    print(f"batch {args.batch}; 2 FLOPs per multiply-add, causal attention counted half. Ratio: {BASELINE} / ours.\n")
    print(report(cost, baseline, args.batch, args.kv_bytes))


if __name__ == "__main__":
    run_program(main)
