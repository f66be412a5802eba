"""Images on their way to the language model: preprocessed on the CPU, encoded by tower and connector, cached."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.inference import Images, place_images, prepare_images
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.perceptual_weights import PerceptualWeights
from llava.program import RequestError


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image on the CPU; waiting requests hold this instead of the image.

    Attributes:
        pixels: see `prepare_images`; of this image only.
        size: width and height of the image.
        key: hash of its content.
    """

    pixels: Images
    size: tuple[int, int]
    key: str


@dataclass(frozen=True)
class EncodedImage:
    """The connector's output for one image.

    Attributes:
        tokens: visual tokens `[T, d]`; None where images become weights only.
        weights: perceptual weights of one row; None where images become tokens only.
    """

    tokens: torch.Tensor | None
    weights: PerceptualWeights | None

    @property
    def num_tokens(self) -> int:
        return 0 if self.tokens is None else len(self.tokens)

    @property
    def num_bytes(self) -> int:
        return (0 if self.tokens is None else self.tokens.nbytes) + bytes_of_weights(self.weights)


def bytes_of_weights(weights: PerceptualWeights | None) -> int:
    """Bytes of the half of perceptual weights that depends on the image; the learned half belongs to the model."""
    return 0 if weights is None else sum(a.nbytes for a in weights.inputs.values())


def prepare_image(model: PreTrainedModel, image_processor: object, image: Image.Image) -> PreparedImage:
    """Preprocess an image on the CPU; from any thread.

    Raises:
        RequestError: the model takes no images.
    """
    pixels, sizes = prepare_images([image], image_processor, model.config)
    return PreparedImage(pixels, sizes[0], image_key(image))


def image_key(image: Image.Image) -> str:
    """Hash of mode, size and pixels: everything that the encoded image depends on."""
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def encode_image(model: PreTrainedModel, image: PreparedImage, num_visual_tokens: int | None) -> EncodedImage:
    """Run tower and connector for one image.

    Args:
        model: with a vision tower.
        image: from `prepare_image`.
        num_visual_tokens: budget of an elastic connector, per image or crop; None: the model's own.

    Raises:
        RequestError: the model does not accept this budget.
    """
    images = ImageInputs(place_images(image.pixels, model), [image.size], num_visual_tokens)
    try:
        tokens, weights = model.encode_chosen(images, [0])
    except ValueError as error:
        raise RequestError(str(error)) from error
    return EncodedImage(tokens.get(0), weights)


class ImageCache:
    """Keeps the most recently used encoded images by content, so that questions about one image encode it once.

    Safe for several threads.

    Args:
        budget: bytes of visual tokens and perceptual weights to keep; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._images: OrderedDict[Hashable, EncodedImage] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, encode: Callable[[], EncodedImage]) -> EncodedImage:
        """The image of a key; calls `encode` if it is not cached."""
        with self._lock:
            found = self._images.get(key)
            if found is not None:
                self.hits += 1
                self._images.move_to_end(key)
                return found
            self.misses += 1
        image = encode()
        self._put(key, image)
        return image

    def _put(self, key: Hashable, image: EncodedImage) -> None:
        if image.num_bytes > self.budget:
            return
        with self._lock:
            if key in self._images:
                return
            self._images[key] = image
            self.used_bytes += image.num_bytes
            while self.used_bytes > self.budget:
                self.used_bytes -= self._images.popitem(last=False)[1].num_bytes
