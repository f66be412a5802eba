"""The images of one call, with everything that decides how they are encoded."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

Images: TypeAlias = torch.Tensor | list[torch.Tensor]


@dataclass(frozen=True)
class ImageInputs:
    """Images as a model takes them.

    Attributes:
        pixels: `[N, 3, H, W]`, one view per image; or M crops per image, as `[N, M, 3, H, W]` or a list of
            `[M, 3, H, W]` or `[3, H, W]`.
        sizes: (width, height) of each image in pixels, before preprocessing; needed for spatial merging only.
        num_visual_tokens: tokens per image or crop instead of the model's own number (elastic connectors).
    """

    pixels: Images
    sizes: list[tuple[int, int]] | None = None
    num_visual_tokens: int | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def given(
        cls, pixels: Images | None, sizes: list[tuple[int, int]] | None = None, num_visual_tokens: int | None = None
    ) -> "ImageInputs | None":
        """None where there are no pixels."""
        return None if pixels is None else cls(pixels, sizes, num_visual_tokens)

    @property
    def is_single_view(self) -> bool:
        """Whether `pixels` is `[N, 3, H, W]`."""
        return isinstance(self.pixels, torch.Tensor) and self.pixels.ndim == 4

    def size_of(self, index: int) -> tuple[int, int] | None:
        """(width, height) of one image."""
        return None if self.sizes is None else tuple(self.sizes[index])

    def crops_of(self, index: int) -> torch.Tensor:
        """`[M, 3, H, W]`."""
        image = self.pixels[index]
        return image if image.ndim == 4 else image.unsqueeze(0)

    def as_single_views(self) -> "ImageInputs":
        """The same images as one tensor `[N, 3, H, W]`.

        Raises:
            ValueError: images of unequal size, or several crops of one.
        """
        pixels = self.pixels
        shapes = {tuple(image.shape) for image in pixels}
        if len(shapes) > 1:
            raise ValueError(f"The images of a batch must have one size, not {sorted(shapes)}")
        shape = shapes.pop()
        if len(shape) == 4 and shape[0] == 1:  # one crop each
            pixels = [image[0] for image in pixels]
        elif len(shape) != 3:
            raise ValueError(
                "A connector of perceptual weights takes one view of each image, [N, 3, H, W] or a list of [3, H, W], "
                f"not images of shape {list(shape)}"
            )
        return replace(self, pixels=torch.stack(pixels) if isinstance(pixels, list) else pixels)

    def with_dummies(self, markers: list[int]) -> "ImageInputs":
        """Give rows without a marker the dummy image that `assign_images` expects, if only shown images were given.

        Evaluation suites build such batches when they generate. Training does not call this: there a missing image is
        an error in the data, which must not shift all the others.

        Args:
            markers: per row, see `count_markers`.
        """
        shown = sum(markers)
        if shown == 0 or len(self) != shown or 0 not in markers:
            return self
        order: list[int] = []
        used = 0
        for count in markers:
            order += range(used, used + count) if count else [0]  # the dummy is not encoded, so any image will do
            used += count
        pixels = self.pixels[order] if isinstance(self.pixels, torch.Tensor) else [self.pixels[i] for i in order]
        return replace(self, pixels=pixels, sizes=None if self.sizes is None else [self.sizes[i] for i in order])
