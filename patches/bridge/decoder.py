"""The decoder of a call with image weights: what it must be able to do, and what is done before and inside it."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llava.model.multimodal_projector.perceptual_weights import install_hooks

from .calls import current_call, in_use, weights_in_use
from .vision import hook_once


def check_decoder(model: Any) -> None:
    """Refuse a language model that images cannot become weights of.

    Raises:
        TypeError: says what it lacks.
    """
    decoder = model.get_model()
    if getattr(decoder, "_is_replica", False):
        raise TypeError("Images cannot become weights under nn.DataParallel; start with torchrun or deepspeed")
    layer = next(iter(getattr(decoder, "layers", [])), None)
    if not hasattr(getattr(layer, "self_attn", None), "q_proj") or getattr(model.config, "pretraining_tp", 1) > 1:
        raise TypeError(
            f"{type(model).__name__} has other decoder layers than Llama's (q_proj, k_proj, v_proj and o_proj, called "
            "as modules, so pretraining_tp 1); images cannot become its weights. Use another connector"
        )


def check_attention(model: Any, slots: torch.Tensor, trains: bool) -> None:
    """Refuse attention without masks, and FlashAttention where a slot's own state is needed.

    FlashAttention drops masked positions, but the state of a slot predicts the first word of a caption.

    Args:
        slots: `[B, n]` bool.

    Raises:
        ValueError: names the attention.
    """
    config, attention = model.config, model.get_model().layers[0].self_attn
    module = type(attention).forward.__module__
    if "xformers" in module:  # replaced by the code base, and without any mask
        raise ValueError("Images cannot become weights with xformers attention, which ignores masks: start train.py")
    is_flash = (
        getattr(config, "_attn_implementation", None) == "flash_attention_2"
        or getattr(config, "_flash_attn_2_enabled", False)
        or "flash" in module  # replaced by the code base
    )
    if is_flash and (trains or slots[:, -1].any()):
        raise ValueError(
            "Images that become weights need attention that keeps masked positions, not FlashAttention: start "
            "train.py instead of train_mem.py, or give attn_implementation sdpa or eager; end prompts with text"
        )


def hook_decoder(decoder: nn.Module) -> None:
    """Let the decoder work with the weights of the current call, whenever it runs."""
    hook_once(decoder._forward_pre_hooks, _enter_decoder, decoder.register_forward_pre_hook, with_kwargs=True)


def _enter_decoder(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]] | None:
    """Before the decoder runs: choose the weights, leave slots out of its mask, count them in its positions."""
    call = current_call.get()
    if call is None or call.weights is None:
        in_use.set(None)
        return None
    inputs = dict(zip(signature(decoder.forward).parameters, args)) | kwargs if args else dict(kwargs)
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    rows, length = (ids if embeds is None else embeds).shape[:2]
    if rows % call.weights.num_rows:
        raise ValueError(f"The images are of {call.weights.num_rows} rows, but the batch has {rows}")
    past = inputs.get("past_key_values")
    if rows not in call.bound:
        if not call.bound and _cached_length(past) > 0:
            raise ValueError("A cache that was filled in another call saw other weights of images; start without it")
        times = rows // call.weights.num_rows
        weights = call.weights if times == 1 else call.weights.repeat_rows(times)
        call.bound[rows] = weights.bind(decoder.dtype)
    bound = call.bound[rows]
    install_hooks(decoder.layers, bound, source=weights_in_use)
    in_use.set(bound)
    if torch.is_grad_enabled() and decoder.training:
        _recompute_with_weights(decoder)
    if call.slots is not None:
        times = rows // len(call.slots)
        slots, padding = call.slots.repeat_interleave(times, dim=0), call.padding.repeat_interleave(times, dim=0)
        inputs |= _leave_out(slots, padding, inputs.get("attention_mask"), past, length)
    return (), inputs


def _leave_out(
    slots: torch.Tensor, padding: torch.Tensor, mask: torch.Tensor | None, past: Any, length: int
) -> dict[str, torch.Tensor]:
    """The mask `[B, m]` without slots, and the positions `[B, length]` with them, m counting what is in the cache."""
    if mask is None:
        mask = slots.new_ones(len(slots), _cached_length(past) + length)
    if mask.ndim != 2:
        raise ValueError(f"Images that become weights need an attention mask [B, n], not {list(mask.shape)}")
    later = mask.shape[1] - slots.shape[1]
    slots, padding = (nn.functional.pad(part, (0, later)) for part in (slots, padding))
    attended = mask.bool() & ~padding & ~slots
    positions = ((attended | slots).long().cumsum(dim=1) - 1).clamp(min=0)
    return {"attention_mask": attended.to(mask.dtype), "position_ids": positions[:, -length:]}


def _cached_length(past: Any) -> int:
    if past is None or past == ():
        return 0
    return past.get_seq_length() if hasattr(past, "get_seq_length") else past[0][0].shape[-2]


def _recompute_with_weights(decoder: nn.Module) -> None:
    """Let recomputation in the backward pass find the weights of its forward pass.

    Raises:
        ValueError: the recomputation of this transformers cannot be told to.
    """
    for module in (decoder, *decoder.layers):
        if not getattr(module, "gradient_checkpointing", False):
            continue
        if not hasattr(module, "_gradient_checkpointing_func"):
            raise ValueError(
                "Training with images as weights and --gradient_checkpointing needs transformers 4.35 or newer, whose "
                "recomputation can be non-reentrant; leave --gradient_checkpointing out"
            )
        module._gradient_checkpointing_func = _checkpoint


def _checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a layer so that its activations are recomputed, non-reentrantly: only so do weights get their gradients."""
    weights = in_use.get()

    def run(*args: Any, **kwargs: Any) -> Any:
        token = in_use.set(weights)
        try:
            return function(*args, **kwargs)
        finally:
            in_use.reset(token)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)
