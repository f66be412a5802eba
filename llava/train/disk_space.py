"""How much a training run writes, estimated from the numbers of parameters."""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)

MOMENTS = 2 * 4  # bytes of AdamW's two moments of a parameter, in float32
MASTER = 4  # bytes of the float32 copy of a bf16 or fp16 parameter, which DeepSpeed keeps


@dataclass(frozen=True)
class RunSize:
    """What a run writes, in bytes.

    Attributes:
        weights: the final weights: the connector in stage 1, everything that trains with LoRA, else the whole model.
        checkpoint: one `checkpoint-N`: the weights and the optimizer's state.
    """

    weights: int
    checkpoint: int

    @classmethod
    def of_run(cls, model: torch.nn.Module, args: Any) -> "RunSize":
        """The size of the run that trains `model` with the training arguments `args`."""
        counts = [(_count(p), p.element_size(), p.requires_grad) for p in model.parameters()]
        trained = sum(count * size for count, size, trains in counts if trains)
        saves_part = getattr(args, "tune_mm_mlp_adapter", False) or getattr(args, "lora_enable", False)
        weights = trained if saves_part else sum(count * size for count, size, _ in counts)
        per_parameter = MOMENTS + (MASTER if args.deepspeed and (args.bf16 or args.fp16) else 0)
        state = 0 if args.save_only_model else sum(count for count, _, trains in counts if trains) * per_parameter
        return cls(weights, weights + state)


def _count(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also of one that ZeRO-3 has in pieces."""
    return getattr(parameter, "ds_numel", parameter.numel())


def check_disk_space(model: torch.nn.Module, args: Any, state: Any) -> None:
    """Compare what the run will write with what is free where `output_dir` is.

    A new checkpoint is complete before an old one is deleted, so one more than `save_total_limit` exist at a time.

    Args:
        model: as it trains.
        args: the training arguments.
        state: the Trainer's state, with the present and the last step.

    Raises:
        OSError: too little is free; the message has the numbers and the remedies.
    """
    size = RunSize.of_run(model, args)
    checkpoints = _checkpoints_to_come(args, state)
    needed = size.weights + checkpoints * size.checkpoint
    disk = shutil.disk_usage(args.output_dir)
    what = f"{gigabytes(size.weights)} of weights"
    if checkpoints:
        what += f", and {checkpoints} checkpoints of {gigabytes(size.checkpoint)} at a time"
    if disk.total and needed > disk.free:  # some network disks do not tell and report 0
        raise OSError(
            f"This run writes {what} to {args.output_dir}, where {gigabytes(disk.free)} are free. Make room, choose "
            "another --output_dir, or write fewer checkpoints (--save_strategy no, --save_only_model True, or a lower "
            "--save_total_limit)"
        )
    logger.info("This run writes %s; %s are free.", what, gigabytes(disk.free))


def _checkpoints_to_come(args: Any, state: Any) -> int:
    """By how many the checkpoints in `output_dir` grow at most."""
    if args.save_strategy == "steps" and state.save_steps > 0:
        planned = state.max_steps // state.save_steps - state.global_step // state.save_steps
    elif args.save_strategy == "epoch":
        planned = state.num_train_epochs - int(state.epoch or 0)
    else:
        return 0
    if not args.save_total_limit:
        return planned
    present = sum(bool(re.fullmatch(r"checkpoint-\d+", name)) for name in os.listdir(args.output_dir))
    return min(planned, args.save_total_limit + 1 - min(present, args.save_total_limit))


def gigabytes(size: int) -> str:
    """Bytes in words: 1500000000 -> 1.5 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
