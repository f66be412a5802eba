"""The arithmetic and cache of a connector, computed without running it.

    python -m llava.tools.cost --llm 7b --connector acformer --tokens 145
    python -m llava.tools.cost --llm 13b --connector pooling --tokens 65 --text-tokens 128 --batch 16
    python -m llava.tools.cost --llm path/to/model --connector pixel_shuffle --tokens 144
    python -m llava.tools.cost --llm 7b --connector vlora --vlora-dim 512 --vlora-rank 64

`--llm` takes `7b`, `13b`, or the folder or config.json of any Llama-like model. The program prints the
FLOPs of a prefill and of a stage-1 training step (with recomputation of activations and without), the bytes of the
key/value cache, for vlora those of one image's weights, and the speed-up over `mlp2x_gelu`, which keeps every
patch.

The formulas are in `llava/tools/flops.py`, those of each connector in `llava/tools/connector_costs.py`. Read as
follows they reproduce the published figures to the last digit:

* vision tower: 23 of CLIP-L's 24 blocks for the MLP as for every connector (select layer -2), patch embedding included;
* logits of the last position only in a prefill, of all positions in a training step;
* a training step runs the frozen language model twice (forward, backward to the activations), or three times when
  activations are recomputed; AcFormer's 13B row is a step without recomputation, VLoRA's a prefill;
* a connector that gives weights keeps one position for the image, and its low-rank paths count as language model.

Arithmetic on small dataclasses; nothing is run. `scripts/bench` uses it, too.
"""

import argparse
import json
import os
from dataclasses import dataclass

from llava.program import RequestError, run_program
from llava.tools.connector_costs import FLOPS, Shapes, connector_flops, count_tokens, makes_weights
from llava.tools.flops import (
    CLIP_L_336,
    GENERATOR,
    RESAMPLER,
    GeneratorShape,
    LLMShape,
    ResamplerShape,
    VisionShape,
    llm_forward_flops,
    low_rank_flops,
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


@dataclass(frozen=True)
class Cost:
    """What one image with its text costs; `tokens` is the actual number of visual tokens (`count_tokens`)."""

    connector: str
    tokens: int
    text_tokens: int
    llm: LLMShape
    vision: VisionShape = CLIP_L_336
    resampler: ResamplerShape = RESAMPLER
    generator: GeneratorShape = GENERATOR

    @property
    def slots(self) -> int:
        """Positions of the sequence that the image takes; at least one, which is masked for weights."""
        return max(self.tokens, 1)

    @property
    def positions(self) -> int:
        return self.slots + self.text_tokens

    @property
    def tower_flops(self) -> int:
        return vit_flops(self.vision.blocks - 1, self.vision)  # select layer -2

    @property
    def connector_flops(self) -> int:
        shapes = Shapes(self.llm, self.vision, self.resampler, self.generator)
        return connector_flops(self.connector, self.tokens, shapes)

    def llm_flops(self, logits: int) -> int:
        """The language model's forward pass, the low-rank paths of perceptual weights included."""
        flops = llm_forward_flops(self.llm, self.positions, logits)
        if makes_weights(self.connector):
            flops += low_rank_flops(self.llm, self.positions, self.generator)
        return flops

    @property
    def prefill_flops(self) -> int:
        return self.tower_flops + self.connector_flops + self.llm_flops(logits=1)

    def stage1_step_flops(self, recompute: bool) -> int:
        """Tower forward, connector forward and backward, frozen language model forward and backward to activations."""
        passes = 3 if recompute else 2
        forward = self.llm_flops(logits=self.positions)
        return self.tower_flops + 3 * self.connector_flops + passes * forward

    def cache_bytes(self, bytes_per_value: int = 2) -> int:
        """Keys and values of all layers after the prefill."""
        return self.positions * self._position_bytes(bytes_per_value)

    def image_cache_bytes(self, bytes_per_value: int = 2) -> int:
        """The image's share of `cache_bytes`."""
        return self.slots * self._position_bytes(bytes_per_value)

    def _position_bytes(self, bytes_per_value: int) -> int:
        return 2 * self.llm.layers * self.llm.kv_heads * self.llm.head_dim * bytes_per_value

    def weight_bytes(self, bytes_per_value: int = 2) -> int:
        """The weights that one image becomes, kept beside the cache; 0 for a connector that gives tokens only."""
        if not makes_weights(self.connector):
            return 0
        return self.generator.image_values(self.llm) * bytes_per_value


def report(cost: Cost, baseline: Cost, batch: int, bytes_per_value: int) -> str:
    """The costs of `batch` images side by side, as a table for a terminal."""

    def row(name: str, ours: float, theirs: float, unit: float) -> str:
        ratio = f"{theirs / ours:.2f}x" if ours else "-"
        return f"{name:<40}{batch * ours / unit:>14,.1f}{batch * theirs / unit:>16,.1f}{ratio:>10}"

    forward = [c.llm_flops(logits=1) for c in (cost, baseline)]
    image_cache = [c.image_cache_bytes(bytes_per_value) for c in (cost, baseline)]
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
        row("  of it the image's, MiB", *image_cache, 2**20),
    ]
    weights = [c.weight_bytes(bytes_per_value) for c in (cost, baseline)]
    if any(weights):
        lines.append(row("weights made of the image, MiB", *weights, 2**20))
    return "\n".join(lines)


def _tokens(cost: Cost) -> str:
    return f"{cost.tokens} + {cost.text_tokens}"


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def letters(text: str) -> str:
    """Different letters of qkvom, for argparse."""
    if not text or set(text) - set("qkvom") or len(set(text)) < len(text):
        raise argparse.ArgumentTypeError(f"must be different letters of qkvom, not {text!r}")
    return text


def parse_arguments(args: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="7b", help=f"{', '.join(LLMS)}, or a config.json or its folder")
    parser.add_argument("--connector", default="acformer", help=f"linear, mlp<k>x_gelu, {', '.join(FLOPS)}")
    parser.add_argument("--tokens", type=positive, default=145, help="visual tokens per image")
    parser.add_argument("--text-tokens", type=positive, default=64, help="text tokens beside one image")
    shape = GENERATOR
    parser.add_argument("--vlora-dim", type=positive, default=shape.width, help="vlora: width of the generator")
    parser.add_argument("--vlora-depth", type=positive, default=shape.depth, help="vlora: layers of a generator stack")
    parser.add_argument("--vlora-rank", type=positive, default=shape.rank, help="vlora: rank of the weights")
    parser.add_argument("--vlora-ratio", type=positive, default=shape.ratio, help="vlora: feed-forward / width")
    parser.add_argument("--vlora-type", type=letters, default=shape.letters, help="vlora: weighted matrices, of qkvom")
    parser.add_argument("--skip-layers", type=positive, default=shape.skip, help="vlora: every how many layers")
    parser.add_argument("--joint", action="store_true", help="vlora: one stack for all letters (weights_sep False)")
    parser.add_argument("--batch", type=positive, default=1, help="images")
    parser.add_argument("--kv-bytes", type=positive, default=2, help="bytes of one value in the cache; 2 is bf16")
    return parser.parse_args(args)


def main() -> None:
    """Print the costs of the connector that the command line names beside those of `mlp2x_gelu`."""
    args = parse_arguments()
    llm = read_llm(args.llm)
    generator = GeneratorShape(
        width=args.vlora_dim,
        depth=args.vlora_depth,
        rank=args.vlora_rank,
        letters=args.vlora_type,
        skip=args.skip_layers,
        is_separate=not args.joint,
        ratio=args.vlora_ratio,
    )
    if generator.skip > llm.layers:
        raise RequestError(
            f"--skip-layers {generator.skip} weights nothing: the language model has {llm.layers} layers"
        )
    cost, baseline = (
        Cost(name, count_tokens(name, args.tokens), args.text_tokens, llm, generator=generator)
        for name in (args.connector, BASELINE)
    )
    table = report(cost, baseline, args.batch, args.kv_bytes)  # fails before anything is printed
    print(f"Language model {args.llm} ({llm.layer_weights / 1e9:.3f} G weights in its layers), CLIP ViT-L/14-336,")
    print(f"batch {args.batch}; 2 FLOPs per multiply-add, causal attention counted half. Ratio: {BASELINE} / ours.\n")
    print(table)


if __name__ == "__main__":
    run_program(main)
