"""From token ids and pictures to what the language model reads: embeddings, and weights where pictures become those."""

import hashlib
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference import Images, place_images, prepare_images
from llava.model.perceptual_weights import PerceptualWeights
from llava.model.picture_binding import one_view_each
from llava.model.splice import splice_rows
from llava.program import RequestError


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the tower wants it, on the CPU: what a waiting request holds instead of the picture itself.

    Attributes:
        pixels: see `prepare_images`; of this picture only.
        size: width and height of the picture.
        key: hash of its content.
    """

    pixels: Images
    size: tuple[int, int]
    key: str


@dataclass(frozen=True)
class EncodedPicture:
    """One picture as the connector gave it.

    Attributes:
        tokens: `[T, d]`, None where pictures are weights only.
        weights: of one row, None where pictures are tokens only.
    """

    tokens: torch.Tensor | None
    weights: PerceptualWeights | None

    @property
    def num_tokens(self) -> int:
        return 0 if self.tokens is None else len(self.tokens)

    @property
    def num_bytes(self) -> int:
        return (0 if self.tokens is None else self.tokens.nbytes) + bytes_of_weights(self.weights)


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for the language model.

    Attributes:
        embeds: `[n, d]`.
        visible: `[n]`, False at the slots of pictures that became weights: nobody attends to them.
        weights: of one row, or None.
        num_visual_tokens: of the n.
    """

    embeds: torch.Tensor
    visible: torch.Tensor
    weights: PerceptualWeights | None
    num_visual_tokens: int

    def __len__(self) -> int:
        return len(self.embeds)


def bytes_of_weights(weights: PerceptualWeights | None) -> int:
    """What a picture's own part of its weights takes; the learned part is the model's."""
    return 0 if weights is None else sum(a.nbytes for a in weights.inputs.values())


def prepare_picture(model: PreTrainedModel, image_processor: object, picture: Image.Image) -> PreparedPicture:
    """The part of the work that needs no model; from any thread.

    Raises:
        RequestError: the model takes no pictures.
    """
    pixels, sizes = prepare_images([picture], image_processor, model.config)
    return PreparedPicture(pixels, sizes[0], picture_key(picture))


def picture_key(picture: Image.Image) -> str:
    """Hash of what decides what a picture becomes: pixels, size, mode."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size} ".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def encode_picture(model: PreTrainedModel, picture: PreparedPicture, num_visual_tokens: int | None) -> EncodedPicture:
    """Tower and connector for one picture.

    Args:
        num_visual_tokens: budget of an elastic connector, per picture or crop; None is the model's own.

    Raises:
        RequestError: the model does not take pictures with this budget.
    """
    pixels = place_images(picture.pixels, model)
    try:
        if model.space == "parameter":
            return EncodedPicture(None, model.encode_images(one_view_each(pixels), num_visual_tokens))
        tokens, weights = model.encode_pictures(pixels, [picture.size], [0], num_visual_tokens)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return EncodedPicture(tokens[0], weights)


@torch.inference_mode()
def build_prompt(model: PreTrainedModel, input_ids: list[int], pictures: list[EncodedPicture]) -> Prompt:
    """Put pictures in the place of the markers, left to right.

    Args:
        input_ids: IMAGE_TOKEN_INDEX where a picture goes.

    Raises:
        RequestError: markers and pictures do not match, an id is not in the vocabulary, the prompt is empty, or it
            begins with a picture that becomes weights.
    """
    if not input_ids:
        raise RequestError("the prompt is empty")
    num_markers = input_ids.count(IMAGE_TOKEN_INDEX)
    if num_markers != len(pictures):
        raise RequestError(f"the prompt has {num_markers} image marker(s), but {len(pictures)} picture(s) came with it")
    embedding = model.get_input_embeddings()
    wrong = [i for i in input_ids if i != IMAGE_TOKEN_INDEX and not 0 <= i < embedding.num_embeddings]
    if wrong:  # on a GPU a look-up outside of the table poisons the whole process
        raise RequestError(f"token id {wrong[0]} is not in the model's vocabulary of {embedding.num_embeddings}")

    ids = torch.tensor([input_ids], device=embedding.weight.device)
    slots = ids == IMAGE_TOKEN_INDEX
    embeds = embedding(ids.masked_fill(slots, 0))
    weights = [picture.weights for picture in pictures if picture.weights is not None]
    of_row = join_weights([weights]) if weights else None
    if model.space == "parameter":
        if slots[0, 0]:
            raise RequestError("a picture stands at the very start of the prompt; put text in front of it")
        return Prompt(embeds[0], ~slots[0], of_row, 0)
    spliced = splice_rows(
        text_embeds=embeds,
        input_ids=ids,
        attention_mask=None,
        labels=None,
        pictures=[[picture.tokens for picture in pictures]],
        max_length=None,  # cutting would take the end of the question; what is too long is refused instead
        padding_side="right",
    )
    num_visual = sum(picture.num_tokens for picture in pictures)
    return Prompt(spliced.embeds[0], spliced.attention_mask[0], of_row, num_visual)


def join_weights(rows: list[list[PerceptualWeights]]) -> PerceptualWeights | None:
    """The weights of a batch from those of the pictures of each of its rows; None if no row has any."""
    flat = [weights for row in rows for weights in row]
    if not flat:
        return None
    places = iter(range(len(flat)))
    inputs = {letter: torch.cat([weights.inputs[letter] for weights in flat]) for letter in flat[0].inputs}
    return flat[0]._replace(inputs=inputs).for_rows([[next(places) for _ in row] for row in rows])
