"""Images that become weights of the decoder (VLoRA): from the images of a call to every layer it runs.

Three places take part. The model's `forward` and `generate` open a call (`carry_weights`).
`prepare_inputs_labels_for_multimodal` or `encode_images` fills it (`assemble_inputs`, `note_weights`). A hook on the
decoder lets its layers work with it, in every decoding step.
"""

from typing import Any, NamedTuple

import torch

from llava.model.multimodal_projector.image_rows import ImageCountError, assign_images, images_to_encode
from llava.model.multimodal_projector.perceptual_weights import PerceptualWeights

from .calls import Call, current_call
from .decoder import check_attention, check_decoder, hook_decoder
from .vision import connector_of, run_connector

IMAGE_TOKEN_INDEX = -200  # marks an image in the token ids, in every LLaVA
IGNORE_INDEX = -100


class Assembled(NamedTuple):
    """Inputs of the language model in place of token ids with image markers."""

    inputs_embeds: torch.Tensor
    labels: torch.Tensor | None


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
    call, has_images = current_call.get(), images is not None and len(images) > 0
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
    check_decoder(model)
    if connector.space == "both":
        return None
    if (slots & (real.cumsum(dim=1) == 1)).any():
        raise ValueError("A row starts with an image; put a token in front of it, for example BOS")
    check_attention(model, slots, trains=labels is not None)
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
    call = current_call.get()
    if call is None or call.rows is None:
        raise RuntimeError("Images that become weights act in a call of the model: use its forward or generate")
    _use(model, call, weights.for_rows(call.rows))


def _use(model: Any, call: Call, weights: PerceptualWeights) -> None:
    call.weights, call.bound = weights, {}
    hook_decoder(model.get_model())


def _single_views(images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """`[N, 3, H, W]` of images with one view each."""
    views = [image.unsqueeze(0) if image.ndim == 3 else image for image in images]
    if any(len(view) != 1 for view in views):
        raise ValueError(
            "An image becomes weights as one view, but it is cut into crops; set image_aspect_ratio to pad"
        )
    return torch.cat(views)
