"""Weights, gradients and optimizer states as DeepSpeed keeps them, against `python -m llava.tools.fit`.

    python scripts/bench/fit_states.py --markdown docs/benchmarks/fit_states.md --json docs/benchmarks/fit_states.json

One bf16 Llama of a few million parameters trains for three steps in one process, by every ZeRO stage. Bytes per
parameter are counted between steps, after the backward pass, and at the most during the optimizer's step.
"""

import argparse
import json
import os

import torch
from common import add_common_flags, markdown_table, publish, run_again
from transformers import LlamaConfig, LlamaForCausalLM

from llava.tools.fitting.states import Engine, Parameters, ZeroConfig
from llava.tools.fitting.storages import LiveStorages

WIDTH = 256
MOMENTS = ("between steps", "after backward", "step, peak")
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def build() -> LlamaForCausalLM:
    """The model, in bf16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=512, use_cache=False)
    return LlamaForCausalLM(config).to(torch.bfloat16).train()


def measure(stage: int, port: str) -> list[int]:
    """Bytes at the moments of the third step; this process becomes a DeepSpeed world of one."""
    import deepspeed

    os.environ.update(ALONE | {"MASTER_PORT": port})
    model = build()
    zero = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": WIDTH**2}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    ids = torch.arange(8).unsqueeze(0)
    with LiveStorages(known=[ids], counted=model.parameters()) as storages:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for _ in range(3):
            between = storages.live
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            after_backward = storages.peak = storages.live
            engine.step()
    return [between, after_backward, storages.peak]


def compute(stage: int) -> tuple[list[int], int]:
    """The same by the memory model, and the number of parameters."""
    sizes = [p.numel() for p in build().parameters()]
    parameters = Parameters(sum(sizes), 0, 0, max(sizes))
    states = Engine(1, True, ZeroConfig(stage, bucket=WIDTH**2), "adamw_torch_fused", WIDTH).states(parameters)
    between = states.weights + states.optimizer + (states.gradients if states.holds_gradients else 0)
    after = states.weights + states.optimizer + states.gradients
    return [between, after, after + states.step], parameters.trained


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.set_defaults(dtype="bf16")
    parser.add_argument("--stage", type=int, choices=range(4), help="measure this stage only, print JSON")
    parser.add_argument("--port", default="29571", help="of the process group")
    args = parser.parse_args()
    if args.stage is not None:
        print(json.dumps(measure(args.stage, args.port)))
        return
    rows, figures = [], []
    for stage in range(4):
        measured, (computed, count) = run_again("--stage", str(stage)), compute(stage)
        figures.append({"stage": stage, "measured": measured, "computed": computed, "parameters": count})
        pairs = zip(measured, computed)
        rows.append([f"ZeRO-{stage}", *(f"{m / count:.2f} / {c / count:.2f}" for m, c in pairs)])
    header = ["bytes per parameter, measured / computed", *MOMENTS]
    publish(args, "States of DeepSpeed against the memory model", markdown_table(header, rows), {"rows": figures})


if __name__ == "__main__":
    main()
