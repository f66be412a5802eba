"""The precision of what trains, of what stands still, and of what is saved."""

from typing import Any

import torch

from llava.train.arguments import TrainingArguments


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """fp16, bf16 or fp32 by flags."""
    return torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32


def tower_dtype(args: TrainingArguments, trains: bool = False) -> torch.dtype:
    """bf16 under --bf16, else float16; float32 if it trains, or on a CPU, where half precision is slow."""
    if args.bf16:
        return torch.bfloat16
    if trains:
        return torch.float32
    return torch.float16 if torch.cuda.is_available() else torch.float32


def settle_trained_dtype(model: torch.nn.Module, args: TrainingArguments) -> None:
    """Cast trainable parameters where the mixed-precision engine requires a dtype.

    DeepSpeed in bf16 keeps float32 masters itself and ZeRO-3 takes one dtype only, while the connector and LoRA's
    matrices are made in float32 beside a bf16 language model. Without DeepSpeed, what trains is float32 and computes
    under autocast: bf16 has 8 bits of precision, so a step of 2e-5 is lost in the rounding of most weights, and --fp16
    scales gradients of float32 parameters only. What is frozen keeps its dtype.
    """
    if args.deepspeed:
        made, wanted = (torch.float32, torch.bfloat16) if args.bf16 else (None, None)
    else:
        made, wanted = compute_dtype(args), torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == made:
            parameter.data = parameter.data.to(wanted)


def settle_saved_dtype(model: torch.nn.Module, args: TrainingArguments) -> None:
    """Let a whole model that trained in float32 under --bf16 be saved in bfloat16, as by DeepSpeed."""
    is_whole = not args.lora_enable and not args.tune_mm_mlp_adapter and args.bits == 16
    if is_whole and args.bf16 and not args.deepspeed:
        model.to(torch.bfloat16)


def settle_kbit_dtypes(model: Any, args: TrainingArguments) -> None:
    """k-bit training: LoRA in bf16, norms in float32, embeddings and head in bf16."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and args.bf16:
            module.to(torch.bfloat16)
        if "norm" in name and "vision_tower" not in name and "mm_projector" not in name:
            module.to(torch.float32)
        is_table = ("lm_head" in name or "embed_tokens" in name) and hasattr(module, "weight")
        if is_table and args.bf16 and module.weight.dtype == torch.float32:
            module.to(torch.bfloat16)
