"""Pictures as weights: a masked slot in the sequence, and updates bound to its row (contract vlora.md 4)."""

from dataclasses import dataclass, replace

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_projector.registry import space_of
from llava.model.perceptual_weights import PerceptualWeights
from llava.model.splice import ImageCountError, assign_pictures, count_markers


@dataclass(frozen=True)
class BoundBatch:
    """What goes into the language model, all `[B, n]`; the caller's tensors stay as they are.

    Attributes:
        inputs_embeds: `[B, n, d]` instead of `input_ids` where visual tokens were spliced in beside the weights.
        weights: of the rows with a picture; None if there are none, except in training.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    labels: torch.Tensor | None
    inputs_embeds: torch.Tensor | None = None
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


def one_view_each(images: torch.Tensor | list[torch.Tensor] | None) -> torch.Tensor | None:
    """`[N, 3, H, W]`; no picture at all is None.

    Raises:
        ValueError: pictures of unequal size, or several crops of one.
    """
    if images is None or len(images) == 0:
        return None
    shapes = {tuple(picture.shape) for picture in images}
    if len(shapes) > 1:
        raise ValueError(f"The pictures of a batch must have one size, not {sorted(shapes)}")
    shape = shapes.pop()
    if len(shape) == 4 and shape[0] == 1:  # one crop each
        images = [picture[0] for picture in images]
    elif len(shape) != 3:
        raise ValueError(
            "A connector of perceptual weights takes one view of each picture, [N, 3, H, W] or a list of [3, H, W], "
            f"not pictures of shape {list(shape)}"
        )
    return torch.stack(images) if isinstance(images, list) else images


def weights_of_rows(
    weights: PerceptualWeights, pictures_of_rows: list[list[int]], encoded: list[int]
) -> PerceptualWeights:
    """The weights of a batch.

    Args:
        weights: of the pictures that were encoded.
        pictures_of_rows: per row, which pictures it shows.
        encoded: the numbers of the encoded pictures.
    """
    places = {picture: place for place, picture in enumerate(encoded)}
    return weights.for_rows([[places[picture] for picture in row] for row in pictures_of_rows])


def pictures_to_encode(pictures_of_rows: list[list[int]], num_pictures: int) -> list[int]:
    """The pictures that rows show; in training the first, unused, where no row shows any.

    Every process must run the connector and the same operations in every layer, pictures or not: under ZeRO-3 with
    recomputation the order in which parameters are gathered follows from them.
    """
    shown = [picture for row in pictures_of_rows for picture in row]
    return shown if shown or num_pictures == 0 or not torch.is_grad_enabled() else [0]


class PictureBinding:
    """Mixed into a causal language model beside the splicing of visual tokens; needs its `encode_images`."""

    @property
    def space(self) -> str:
        """How pictures come: `Connector.space`."""
        return space_of(getattr(self.get_model(), "mm_projector", None))

    @property
    def takes_weights(self) -> bool:
        """Whether pictures come as perceptual weights, with or without visual tokens."""
        return self.space != "input"

    def bind_pictures(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        labels: torch.Tensor | None,
        images: torch.Tensor | list[torch.Tensor] | None,
        num_visual_tokens: int | None = None,
        padding_side: str | None = None,
    ) -> BoundBatch:
        """The batch with its pictures' slots masked, or their visual tokens spliced in, and the weights they become.

        Args:
            input_ids: `[B, n]`, IMAGE_TOKEN_INDEX at the slot of each picture.
            images: `[N, 3, H, W]` or a list of `[3, H, W]`, one per slot and a dummy one per row without.
            num_visual_tokens, padding_side: see `prepare_inputs_labels_for_multimodal`; for visual tokens.

        Raises:
            ImageCountError: pictures and slots do not match.
            ValueError: a slot at the start of a row, or several crops of one picture.
        """
        images = one_view_each(images)
        if images is None:
            if (input_ids == IMAGE_TOKEN_INDEX).any():
                raise ImageCountError("The text has an image marker, but no picture was given")
            return BoundBatch(input_ids, attention_mask, position_ids, labels)
        if self.space == "both":
            return self.splice_pictures(
                *(input_ids, attention_mask, position_ids, labels, images),
                num_visual_tokens=num_visual_tokens,
                padding_side=padding_side,
            )
        batch = mask_slots(input_ids, attention_mask, position_ids, labels)
        rows = assign_pictures(count_markers(input_ids, attention_mask), len(images))
        encoded = pictures_to_encode(rows, len(images))
        if not encoded:
            return batch
        weights = self.encode_images(images[encoded], num_visual_tokens)
        return replace(batch, weights=weights_of_rows(weights, rows, encoded))
