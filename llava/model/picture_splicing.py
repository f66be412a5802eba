"""Pictures as visual tokens: encoded and put where their markers stand (contract package.md 8.3)."""

from typing import Any

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.anyres import merge_crops, merge_type_of
from llava.model.perceptual_weights import PerceptualWeights
from llava.model.picture_binding import BoundBatch, pictures_to_encode, weights_of_rows
from llava.model.splice import ImageCountError, assign_pictures, count_markers, splice_rows


class PictureSplicing:
    """Mixed into a causal language model; needs its `encode_images` and `PictureBinding`."""

    def splice_pictures(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        labels: torch.Tensor | None,
        images: torch.Tensor | list[torch.Tensor] | None,
        image_sizes: list[tuple[int, int]] | None = None,
        *,
        padding_side: str | None = None,
        num_visual_tokens: int | None = None,
    ) -> BoundBatch:
        """`prepare_inputs_labels_for_multimodal` by name, with the weights of connectors that give both."""
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            if input_ids.shape[1] > 1 and (input_ids == IMAGE_TOKEN_INDEX).any():
                raise ImageCountError(
                    "The text has an image marker, but no picture was given (or the model has no vision tower)"
                )
            return BoundBatch(input_ids, attention_mask, position_ids, labels)

        config = self.config
        if getattr(config, "tune_mm_mlp_adapter", False) and getattr(config, "mm_use_im_start_end", False):
            raise NotImplementedError("tune_mm_mlp_adapter together with mm_use_im_start_end is not supported")

        merge_type_of(config)  # refuse an unknown one before any work
        rows = assign_pictures(count_markers(input_ids, attention_mask), len(images))
        encoded = pictures_to_encode(rows, len(images))
        visual, weights = self.encode_pictures(images, image_sizes, encoded, num_visual_tokens)
        text_embeds = self.get_input_embeddings()(input_ids.masked_fill(input_ids == IMAGE_TOKEN_INDEX, 0))
        batch = splice_rows(
            text_embeds=text_embeds,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            pictures=[[visual[i] for i in row] for row in rows],
            max_length=getattr(config, "tokenizer_model_max_length", None),
            padding_side=padding_side or getattr(config, "tokenizer_padding_side", "right"),
        )
        embeds = batch.embeds
        if encoded and not any(rows):  # shown nowhere: only the connector's part in the loss is wanted, with weight 0
            embeds = embeds + (visual[encoded[0]].sum() * 0).to(embeds)
        return BoundBatch(
            None,
            None if attention_mask is None else batch.attention_mask.to(attention_mask.dtype),
            None if position_ids is None else batch.position_ids,
            None if labels is None else batch.labels,
            embeds,
            None if weights is None else weights_of_rows(weights, rows, encoded),
        )

    def encode_pictures(
        self,
        images: torch.Tensor | list[torch.Tensor],
        image_sizes: Any,
        encoded: list[int],
        num_visual_tokens: int | None,
    ) -> tuple[dict[int, torch.Tensor], PerceptualWeights | None]:
        """Visual tokens `[T_i, d]` of chosen pictures by number, and their weights if the connector gives both."""
        if not encoded:
            return {}, None
        weights = None
        if isinstance(images, torch.Tensor) and images.ndim == 4:
            chosen = images[encoded] if len(encoded) < len(images) else images
            tokens = self.encode_images(chosen, num_visual_tokens)
            if self.takes_weights:
                tokens, weights = tokens
        else:
            tokens = self._encode_crops(images, image_sizes, encoded, num_visual_tokens)
        return dict(zip(encoded, tokens, strict=True)), weights

    def _encode_crops(
        self, images: Any, image_sizes: Any, chosen: list[int], num_visual_tokens: int | None
    ) -> list[torch.Tensor]:
        """All crops of the chosen pictures as one batch, merged per picture."""
        crops = [images[i] if images[i].ndim == 4 else images[i].unsqueeze(0) for i in chosen]
        tokens = self.encode_images(torch.cat(crops), num_visual_tokens).split([len(c) for c in crops])
        newline = getattr(self.get_model(), "image_newline", None)
        return [
            merge_crops(
                picture,
                config=self.config,
                tower=self.get_vision_tower(),
                image_size=None if image_sizes is None else tuple(image_sizes[i]),
                image_newline=newline,
            )
            for i, picture in zip(chosen, tokens, strict=True)
        ]
