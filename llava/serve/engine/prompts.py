"""From token ids and images to the inputs of the language model: embeddings, and perceptual weights (VLoRA)."""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.multimodal_projector.perceptual_weights import PerceptualWeights
from llava.model.splice import splice_rows
from llava.program import RequestError
from llava.serve.engine.images import EncodedImage, ImageCache, PreparedImage, encode_image


@dataclass(frozen=True)
class Prompt:
    """The inputs of the language model for one prompt.

    Attributes:
        embeds: `[n, d]`.
        visible: `[n]`, False at the positions of images that became weights, which are never attended to.
        weights: of one row, or None.
        num_visual_tokens: of the n.
    """

    embeds: torch.Tensor
    visible: torch.Tensor
    weights: PerceptualWeights | None
    num_visual_tokens: int

    def __len__(self) -> int:
        return len(self.embeds)


class PromptEncoder:
    """Embeds prompts with their images; images are cached by content.

    Args:
        model: tower, connector and embeddings.
        image_cache_bytes: see `ImageCache`.
    """

    def __init__(self, model: PreTrainedModel, image_cache_bytes: int) -> None:
        self.model = model
        self.cache = ImageCache(image_cache_bytes)
        self._learned: dict[str, torch.Tensor] | None = None  # output halves of perceptual weights

    def encode(self, input_ids: list[int], images: tuple[PreparedImage, ...], num_visual_tokens: int | None) -> Prompt:
        """Embed a prompt; runs the vision tower for images that are not cached.

        Raises:
            RequestError: see `encode_image` and `embed_prompt`.
        """
        encoded = [
            self.cache.get((image.key, num_visual_tokens), lambda image=image: self._encode(image, num_visual_tokens))
            for image in images
        ]
        return embed_prompt(self.model, input_ids, encoded)

    def _encode(self, image: PreparedImage, num_visual_tokens: int | None) -> EncodedImage:
        encoded = encode_image(self.model, image, num_visual_tokens)
        if encoded.weights is None:
            return encoded
        # The connector computes the learned half anew for each image. It is always the same, so one copy is kept.
        self._learned = self._learned or encoded.weights.outputs
        return replace(encoded, weights=encoded.weights._replace(outputs=self._learned))


@torch.inference_mode()
def embed_prompt(model: PreTrainedModel, input_ids: list[int], images: list[EncodedImage]) -> Prompt:
    """Embed a prompt and insert its images at the markers, left to right.

    Args:
        model: its input embeddings are used.
        input_ids: IMAGE_TOKEN_INDEX where an image goes.
        images: one per marker.

    Raises:
        RequestError: markers and images do not match, an id is not in the vocabulary, the prompt is empty, or it
            begins with an image that becomes weights.
    """
    if not input_ids:
        raise RequestError("the prompt is empty")
    num_markers = input_ids.count(IMAGE_TOKEN_INDEX)
    if num_markers != len(images):
        raise RequestError(f"the prompt has {num_markers} image marker(s), but {len(images)} image(s) came with it")
    embedding = model.get_input_embeddings()
    wrong = [i for i in input_ids if i != IMAGE_TOKEN_INDEX and not 0 <= i < embedding.num_embeddings]
    if wrong:  # on a GPU, a look-up outside of the table makes the whole process unusable
        raise RequestError(f"token id {wrong[0]} is not in the model's vocabulary of {embedding.num_embeddings}")

    ids = torch.tensor([input_ids], device=embedding.weight.device)
    weights = [image.weights for image in images if image.weights is not None]
    of_row = join_weights([weights]) if weights else None
    if model.space == "parameter":
        slots = ids[0] == IMAGE_TOKEN_INDEX
        if slots[0]:
            raise RequestError("the prompt begins with an image; put text in front of it")
        return Prompt(embedding(ids[0].masked_fill(slots, 0)), ~slots, of_row, 0)
    spliced = splice_rows(
        embed=embedding,
        input_ids=ids,
        attention_mask=None,
        labels=None,
        visual=[[image.tokens for image in images]],
        max_length=None,  # truncation would cut the end of the question; too long prompts are refused instead
        padding_side="right",
    )
    num_visual = sum(image.num_tokens for image in images)
    return Prompt(spliced.inputs_embeds[0], spliced.attention_mask[0], of_row, num_visual)


def join_weights(rows: list[list[PerceptualWeights]]) -> PerceptualWeights | None:
    """The weights of a batch, from those of the images of each of its rows; None if no row has any."""
    flat = [weights for row in rows for weights in row]
    if not flat:
        return None
    places = iter(range(len(flat)))
    inputs = {letter: torch.cat([weights.inputs[letter] for weights in flat]) for letter in flat[0].inputs}
    return flat[0]._replace(inputs=inputs).for_rows([[next(places) for _ in row] for row in rows])
