"""Pictures as weights: a masked slot in the sequence, and updates bound to its row (contract vlora.md 4)."""

from dataclasses import dataclass, replace

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.perceptual_weights import PerceptualWeights
from llava.model.splice import ImageCountError, assign_pictures, count_markers


@dataclass(frozen=True)
class BoundBatch:
    """What goes into the language model, all `[B, n]`; the caller's tensors stay as they are.

    Attributes:
        weights: of the rows with a picture; None if there are none, except in training.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    labels: torch.Tensor | None
    weights: PerceptualWeights | None = None


def mask_slots(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    labels: torch.Tensor | None,
) -> BoundBatch:
    """Slots keep their place and position, but nobody attends to them and nothing is predicted for them.

    Raises:
        ValueError: a slot is the first token of its row and has nothing to attend to.
    """
    slots = input_ids == IMAGE_TOKEN_INDEX
    real = torch.ones_like(slots) if attention_mask is None else attention_mask.bool()
    order = real.cumsum(dim=1)
    if (slots & real & (order == 1)).any():
        raise ValueError("A picture stands at the very start of a row; put a token in front of it, for example BOS")
    if not slots.any():
        return BoundBatch(input_ids, attention_mask, position_ids, labels)
    if position_ids is None:
        position_ids = (order - 1).clamp(min=0)
    mask = real & ~slots
    return BoundBatch(
        input_ids.masked_fill(slots, 0),
        mask if attention_mask is None else mask.to(attention_mask.dtype),
        position_ids,
        None if labels is None else labels.masked_fill(slots, IGNORE_INDEX),
    )


class PictureBinding:
    """Mixed into a causal language model beside the splicing of visual tokens; needs its `encode_images`."""

    @property
    def takes_weights(self) -> bool:
        """Whether pictures come as perceptual weights, not as visual tokens."""
        return getattr(getattr(self.get_model(), "mm_projector", None), "space", "input") == "parameter"

    def bind_pictures(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        labels: torch.Tensor | None,
        images: torch.Tensor | list[torch.Tensor] | None,
    ) -> BoundBatch:
        """The batch with its slots masked, and the weights its pictures become (contract vlora.md 4).

        Args:
            input_ids: `[B, n]`, IMAGE_TOKEN_INDEX at the slot of each picture.
            images: `[N, 3, H, W]` or a list of `[3, H, W]`, one per slot and a dummy one per row without.

        Raises:
            ImageCountError: pictures and slots do not match.
            ValueError: a slot at the start of a row, or several crops of one picture.
        """
        counts = count_markers(input_ids, attention_mask)
        if images is None and any(counts):
            raise ImageCountError("The text has an image marker, but no picture was given")
        batch = mask_slots(input_ids, attention_mask, position_ids, labels)
        if images is None:
            return batch
        pictures = assign_pictures(counts, len(images))
        shown = [i for row in pictures for i in row]
        if not shown and not (torch.is_grad_enabled() and len(images) > 0):
            return batch
        # In training every process must run the generator and the same operations in every layer, pictures or not:
        # under ZeRO-3 with recomputation the order in which parameters are gathered follows from them.
        chosen = shown or [0]
        stacked = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
        if stacked.ndim != 4:
            raise ValueError("A connector of perceptual weights takes one view of a picture, not several crops")
        weights = self.encode_images(stacked[chosen])
        places = {picture: place for place, picture in enumerate(chosen)}
        return replace(batch, weights=weights.for_rows([[places[i] for i in row] for row in pictures]))
