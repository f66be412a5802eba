"""Add a base model to a LLaVA model, or subtract it, in place."""

import torch
from transformers import PreTrainedModel

# The parts of a LLaVA model that no plain language model has: a delta carries them as they are.
VISION_PARTS = ("mm_projector", "vision_tower", "image_newline")
MAY_GROW = ("model.embed_tokens.weight", "lm_head.weight")


@torch.no_grad()
def combine(model: PreTrainedModel, base: PreTrainedModel, sign: int) -> None:
    """`model += sign * base` for every tensor that the base has.

    Embedding tables of the model may be larger: the base is then added to their top-left block.

    Raises:
        ValueError: a tensor is unknown to the base and no vision part, or its shape differs.
    """
    base_state = base.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in base_state:
            if not any(part in name for part in VISION_PARTS):
                raise ValueError(f"{name} is not in the base model and is no part of the vision modules")
            continue
        other = base_state[name]
        if tensor.shape == other.shape:
            tensor += sign * other
        elif name in MAY_GROW:
            tensor[: other.shape[0], : other.shape[1]] += sign * other
        else:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} here, {tuple(other.shape)} in the base model")
