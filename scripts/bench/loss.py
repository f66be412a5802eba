"""Peak memory and time of the loss: logits of every position, of labelled ones, and of some of these at a time.

    python scripts/bench/loss.py
    python scripts/bench/loss.py --device cuda --width 4096

Memory is what rises above hidden states and weights during forward and backward pass, gradients included.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    add_common_flags,
    interleaved_medians,
    markdown_table,
    peak_bytes_above,
    precision,
    publish,
    run_again,
)

from llava.model import label_loss as label_loss_module
from llava.model.label_loss import LanguageHead, label_loss
from llava.model.sequence_plan import LossPlan

LABELLED = 0.3  # share of the positions


def losses(args: argparse.Namespace, positions: int) -> dict[str, Callable[[], Any]]:
    """One forward and backward pass by each way of computing the loss."""
    dtype = precision(args)
    torch.manual_seed(args.seed)
    head = LanguageHead(args.width, args.vocabulary, bias=False, device=args.device, dtype=dtype)
    hidden = torch.randn(1, positions, args.width, device=args.device, dtype=dtype, requires_grad=True)
    labelled = torch.randperm(positions, device=args.device)[: int(LABELLED * positions)].sort().values
    plan = LossPlan(labelled, torch.randint(args.vocabulary, labelled.shape, device=args.device))
    labels = torch.full((positions,), -100, device=args.device).index_copy(0, labelled, plan.targets)

    def run(loss: torch.Tensor) -> None:
        loss.backward()
        head.weight.grad = hidden.grad = None

    def at_once() -> None:
        before = label_loss_module.ROWS_AT_ONCE
        label_loss_module.ROWS_AT_ONCE = positions
        try:
            run(label_loss(head, hidden, plan))
        finally:
            label_loss_module.ROWS_AT_ONCE = before

    return {
        "every position": lambda: run(F.cross_entropy(head(hidden)[0].float(), labels)),
        "labelled positions": at_once,
        "in chunks": lambda: run(label_loss(head, hidden, plan)),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--width", type=int, help="4096 on a GPU, 256 elsewhere if not given")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--positions", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # a fresh process's task
    args = parser.parse_args()
    args.width = args.width or (4096 if args.device.startswith("cuda") else 256)
    args.rounds = args.rounds or 3
    if args.quick:
        args.positions, args.vocabulary, args.width, args.rounds = [256], 2000, 32, 1
    if args.memory_of:
        name, positions = args.memory_of[0], int(args.memory_of[1])
        print(json.dumps(peak_bytes_above(args.device, losses(args, positions)[name])))
        return
    rows, results = [], []
    for positions in args.positions:
        seconds = interleaved_medians(losses(args, positions), args.rounds, args.device)
        for name, time in seconds.items():
            peak = run_again("--memory-of", name, str(positions))
            results.append({"positions": positions, "way": name, "seconds": time, "peak_bytes": peak})
            rows.append([name, f"{positions:,}", f"{1e3 * time:,.0f}", f"{peak / 2**20:,.0f}"])
    table = markdown_table(["logits of", "positions", "ms", "peak, MiB"], rows)
    title = f"The loss, width {args.width}, {args.vocabulary} tokens, {LABELLED:.0%} of the positions labelled"
    publish(args, title, table, {"results": results})


if __name__ == "__main__":
    main()
