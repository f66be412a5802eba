"""Images that become weights of the decoder (VLoRA): from the images of a call to every layer it runs.

The weights belong to one call of the model's `forward` or `generate` and are gone when it returns; a cache filled in it
must not be used afterwards. What the same model is asked inside a running `generate` sees the same images.

Three places take part. The two methods open the call (`carry_weights`). `prepare_inputs_labels_for_multimodal` or
`encode_images` fills it (`assemble_inputs`, `note_weights`). A hook on the decoder lets its layers work with it, in
every decoding step.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import isgenerator, signature
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llava.model.multimodal_projector.image_rows import ImageCountError, assign_images, images_to_encode
from llava.model.multimodal_projector.perceptual_weights import BoundWeights, PerceptualWeights, install_hooks

from .vision import connector_of, run_connector

IMAGE_TOKEN_INDEX = -200  # marks an image in the token ids, in every LLaVA
IGNORE_INDEX = -100
MARK = "_llava_connectors_hook"  # attribute of the decoders that have theirs


@dataclass
class Call:
    """One call of `forward` or `generate`.

    Attributes:
        model: which is called.
        images: that it was given.
        rows: which images each row of the batch shows.
        weights: of the rows with an image.
        slots: `[B, n]` bool, the positions of images that nothing attends to; None if images keep their tokens.
        padding: `[B, n]` bool, the prompt's padding; older code bases forget it when decoding.
        bound: the weights as layers use them, by number of rows (beam search repeats rows).
    """

    model: Any
    images: Any = None
    rows: list[list[int]] | None = None
    weights: PerceptualWeights | None = None
    slots: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    bound: dict[int, BoundWeights] = field(default_factory=dict)


class Assembled(NamedTuple):
    """Inputs of the language model in place of token ids with image markers."""

    inputs_embeds: torch.Tensor
    labels: torch.Tensor | None


_registering = Lock()
_call: ContextVar[Call | None] = ContextVar("call_with_image_weights", default=None)
_in_use: ContextVar[BoundWeights | None] = ContextVar("weights_in_use", default=None)


def carry_weights(model_class: type) -> None:
    """Let `forward` and `generate` of a causal language model carry image weights; to be called on every subclass."""
    for name in ("forward", "generate"):
        method = getattr(model_class, name, None)
        if method is not None and (name in vars(model_class) or not hasattr(method, MARK)):
            setattr(model_class, name, _as_call(method))


def _as_call(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def with_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        connector, outer = connector_of(self), _call.get()
        is_inner = outer is not None and outer.model is self  # generate calls forward
        if connector is None or connector.space == "input" or is_inner:
            return method(self, *args, **kwargs)
        call, in_use = _call.set(Call(self)), _in_use.set(None)
        try:
            result = method(self, *args, **kwargs)
        finally:
            _call.reset(call)
            _in_use.reset(in_use)
        if isgenerator(result):
            raise TypeError(
                f"{type(self).__name__}.{method.__name__} is a generator: it would run after the images are gone. Use "
                "a streamer, or a connector that makes visual tokens"
            )
        return result

    setattr(with_weights, MARK, True)
    return with_weights


def assemble_inputs(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    images: torch.Tensor | list[torch.Tensor] | None,
) -> Assembled | None:
    """Turn the images of a batch into weights, and their markers into masked slots.

    Args:
        model: the causal language model.
        input_ids: `[B, n]`, -200 at the slot of each image.
        attention_mask, labels: `[B, n]` or None.
        images: `[N, 3, H, W]`, or a list of `[3, H, W]`: one per slot, and one unused per row without a slot.

    Returns:
        Embeddings and labels for the language model; None where the code base's own path goes on: images become visual
        tokens, there is no image, or this is a decoding step.

    Raises:
        ImageCountError: images and slots do not match.
        ValueError: a row starts with an image, images are cut into several crops, or the attention cannot leave out
            slots.
    """
    connector = connector_of(model)
    if connector is None or connector.space == "input":
        return None
    call, has_images = _call.get(), images is not None and len(images) > 0
    if input_ids.shape[1] == 1:  # a decoding step
        if has_images and (call is None or call.rows is None):
            raise ValueError(
                "The weights of an image act in every step, but this step of a reply came alone: call generate, or "
                "forward with all tokens and without a cache"
            )
        return None
    markers = input_ids == IMAGE_TOKEN_INDEX
    real = torch.ones_like(markers) if attention_mask is None else attention_mask.bool()
    slots = markers & real
    if not has_images:
        if slots.any():
            raise ImageCountError("The text has an image marker, but no image was given")
        return None
    if call is None:
        raise RuntimeError("Images that become weights act in a call of the model: use its forward or generate")
    if call.images is not None and call.images is not images:
        raise RuntimeError(
            "The model was given other images inside a running generate (contrastive decoding?); they would replace "
            "its weights. Use a connector that makes visual tokens"
        )
    call.images = images
    views = _single_views(images)
    call.rows = assign_images(slots.sum(dim=1).tolist(), len(views))
    if connector.space == "both":
        return None
    if (slots & (real.cumsum(dim=1) == 1)).any():
        raise ValueError("A row starts with an image; put a token in front of it, for example BOS")
    _check_decoder(model)
    _check_attention(model, slots, trains=labels is not None)
    chosen = images_to_encode(call.rows, len(views))
    if chosen:
        weights = run_connector(model, connector, views[chosen])
        places = {image: place for place, image in enumerate(chosen)}
        call.slots, call.padding = slots, ~real
        _use(model, call, weights.for_rows([[places[image] for image in row] for row in call.rows]))
    embeds = model.get_model().get_input_embeddings()(input_ids.masked_fill(markers, 0))
    return Assembled(embeds, None if labels is None else labels.masked_fill(markers, IGNORE_INDEX))


def note_weights(model: Any, weights: PerceptualWeights) -> None:
    """Keep the weights of images whose visual tokens the code base puts into the sequence itself.

    Raises:
        RuntimeError: outside of a call of the model with images.
    """
    call = _call.get()
    if call is None or call.rows is None:
        raise RuntimeError("Images that become weights act in a call of the model: use its forward or generate")
    _use(model, call, weights.for_rows(call.rows))


def _use(model: Any, call: Call, weights: PerceptualWeights) -> None:
    call.weights, call.bound = weights, {}
    _check_decoder(model)
    decoder = model.get_model()
    with _registering:
        if not hasattr(decoder, MARK):
            setattr(decoder, MARK, decoder.register_forward_pre_hook(_enter_decoder, with_kwargs=True))


def _check_decoder(model: Any) -> None:
    decoder = model.get_model()
    if getattr(decoder, "_is_replica", False):
        raise TypeError("Images cannot become weights under nn.DataParallel; start with torchrun or deepspeed")
    layer = next(iter(getattr(decoder, "layers", [])), None)
    if not hasattr(getattr(layer, "self_attn", None), "q_proj") or getattr(model.config, "pretraining_tp", 1) > 1:
        raise TypeError(
            f"{type(model).__name__} has other decoder layers than Llama's (q_proj, k_proj, v_proj and o_proj, called "
            "as modules, so pretraining_tp 1); images cannot become its weights. Use another connector"
        )


def _single_views(images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """`[N, 3, H, W]` of images with one view each."""
    views = [image.unsqueeze(0) if image.ndim == 3 else image for image in images]
    if any(len(view) != 1 for view in views):
        raise ValueError(
            "An image becomes weights as one view, but it is cut into crops; set image_aspect_ratio to pad"
        )
    return torch.cat(views)


def _check_attention(model: Any, slots: torch.Tensor, trains: bool) -> None:
    """FlashAttention drops masked positions, but the state of a slot predicts the first word of a caption."""
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


def weights_in_use() -> BoundWeights | None:
    """What the layers work with that run now in this thread."""
    return _in_use.get()


def _enter_decoder(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]] | None:
    """Before the decoder runs: choose the weights, leave slots out of its mask, count them in its positions."""
    call = _call.get()
    if call is None or call.weights is None:
        _in_use.set(None)
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
    _in_use.set(bound)
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
    weights = _in_use.get()

    def run(*args: Any, **kwargs: Any) -> Any:
        token = _in_use.set(weights)
        try:
            return function(*args, **kwargs)
        finally:
            _in_use.reset(token)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)
