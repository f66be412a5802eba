"""What the LLaVA classes of all LLM families share: forward and generate on spliced embeddings."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers.utils.generic import is_flash_attention_requested

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.perceptual_weights import BoundWeights, PerceptualWeights, install_hooks
from llava.model.picture_binding import BoundBatch, mask_slots
from llava.model.splice import count_markers, fill_in_dummies
from llava.model.weight_merging import merged


class LlavaCausalLMMixin(LlavaMetaForCausalLM):
    """Put before a causal language model of transformers (contract package.md 9)."""

    # The loss is the mean over one micro-batch, not over the accumulated batch (contract train.md 10).
    accepts_loss_kwargs = False
    # The tower loads itself, from `mm_vision_tower`; a checkpoint that holds it too is not at fault.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"vision_tower", r"rotary_emb\.inv_freq"]

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: torch.Tensor | list[torch.Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        return_dict: bool | None = None,
        num_visual_tokens: int | None = None,
        perceptual_weights: PerceptualWeights | BoundWeights | None = None,
        legacy_decode_positions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The language model's forward; pictures are spliced in first unless `inputs_embeds` is given.

        Args:
            input_ids: `[B, n]`, IMAGE_TOKEN_INDEX where a picture goes.
            images, image_sizes, num_visual_tokens: see `prepare_inputs_labels_for_multimodal`.
            perceptual_weights: what pictures became in an earlier call (`bind_pictures`), instead of `images`.
            legacy_decode_positions: give the steps after the first positions one too small in rows with a picture, as
                the published VLoRA did (contract vlora.md 5).
        """
        is_later_step = past_key_values is not None and past_key_values.get_seq_length() > 0
        if is_later_step and images is not None and self.takes_weights:
            raise ValueError(
                "The weights of a picture act in every step, not only in that which shows it: pass perceptual_weights "
                "(see bind_pictures) instead of images, or call the model's own generate"
            )
        if inputs_embeds is None and self.takes_weights and not (is_later_step and perceptual_weights is not None):
            bound = self._bind(
                input_ids, attention_mask, position_ids, labels, images, num_visual_tokens, weights=perceptual_weights
            )
            attention_mask, position_ids, labels = bound.attention_mask, bound.position_ids, bound.labels
            input_ids, inputs_embeds, perceptual_weights = None, bound.inputs_embeds, bound.weights
        elif inputs_embeds is None and perceptual_weights is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids,
                    position_ids,
                    attention_mask,
                    past_key_values,
                    labels,
                    images,
                    image_sizes,
                    num_visual_tokens=num_visual_tokens,
                )
            )
        optional = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
        }
        if perceptual_weights is not None:
            is_flash = is_flash_attention_requested(self.config)
            if labels is not None and self.space == "parameter" and is_flash:
                raise ValueError(
                    "Training with perceptual weights needs attn_implementation sdpa or eager: FlashAttention leaves a "
                    "masked place out altogether, but the picture's slot predicts the first word of a caption"
                )
            batch = input_ids if inputs_embeds is None else inputs_embeds
            if len(batch) != perceptual_weights.num_rows:
                raise ValueError(
                    f"The perceptual weights are those of {perceptual_weights.num_rows} rows, but the batch has "
                    f"{len(batch)}; `repeat_rows` makes them fit rows that stand several times in a row"
                )
            if isinstance(perceptual_weights, PerceptualWeights):
                perceptual_weights = perceptual_weights.bind(self.get_input_embeddings().weight.dtype)
            install_hooks(self.get_model().layers, perceptual_weights)
            kwargs["perceptual_weights"] = perceptual_weights
            if legacy_decode_positions and is_later_step:
                if position_ids is None:
                    raise ValueError("legacy_decode_positions needs position_ids: pass those that are to be corrected")
                position_ids = perceptual_weights.one_position_earlier(position_ids)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **{name: value for name, value in optional.items() if value is not None},
            **kwargs,
        )

    def _bind(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        labels: torch.Tensor | None,
        images: Any,
        num_visual_tokens: int | None,
        padding_side: str | None = None,
        weights: PerceptualWeights | BoundWeights | None = None,
    ) -> BoundBatch:
        """`bind_pictures`, or `weights` that it gave earlier, and the embeddings looked up."""
        batch = (input_ids, attention_mask, position_ids, labels)
        if weights is None:
            bound = self.bind_pictures(*batch, images, num_visual_tokens=num_visual_tokens, padding_side=padding_side)
        elif self.space == "both" or images is not None:
            raise ValueError("perceptual_weights stand for pictures that come as nothing else; pass images instead")
        else:
            bound = replace(mask_slots(*batch), weights=weights)
        if bound.inputs_embeds is not None:
            return bound
        return replace(bound, inputs_embeds=self.get_input_embeddings()(bound.input_ids))

    def _generate_bound(
        self,
        inputs: torch.Tensor,
        mask: torch.Tensor,
        images: Any,
        num_visual_tokens: int | None,
        merge_weights: bool = False,
        perceptual_weights: PerceptualWeights | None = None,
        **kwargs: Any,
    ) -> Any:
        """`generate` with perceptual weights, made once. Positions count the slots, which the mask leaves out."""
        past = kwargs.get("past_key_values")
        shows_pictures = images is not None or perceptual_weights is not None
        if shows_pictures and past is not None and past.get_seq_length() > 0:
            del kwargs["past_key_values"]  # keys and values were made with other weights: everything is read anew
        inputs, mask = _pad_left(inputs, mask)
        if is_flash_attention_requested(self.config) and (inputs[:, -1] == IMAGE_TOKEN_INDEX).any():
            raise ValueError("With FlashAttention a prompt cannot end with a picture: end it with text, or take sdpa")
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        bound = self._bind(
            *(inputs, mask, positions, None, images, num_visual_tokens), padding_side="left", weights=perceptual_weights
        )
        prompt = {
            "attention_mask": bound.attention_mask,
            "position_ids": bound.position_ids,
            "inputs_embeds": bound.inputs_embeds,
        }
        if merge_weights and bound.weights is not None:
            with merged(self.get_model().layers, bound.weights) as rest:
                return super().generate(perceptual_weights=rest, **prompt, **kwargs)
        return super().generate(perceptual_weights=bound.weights, **prompt, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, perceptual_weights: PerceptualWeights | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Called by transformers once per generation; makes the weights ready for all its steps."""
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if perceptual_weights is not None:
            repeated = perceptual_weights if expand_size == 1 else perceptual_weights.repeat_rows(expand_size)
            kwargs["perceptual_weights"] = repeated.bind(self.get_input_embeddings().weight.dtype)
        return input_ids, kwargs

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: torch.Tensor | list[torch.Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        num_visual_tokens: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate from a prompt with pictures; the result holds only new token ids `[B, m]`, never the prompt.

        Rows are padded at the left inside, whatever the configuration says, so that a batch answers as its rows would
        one by one. `attention_mask` `[B, n]` marks the padding of `inputs`. `images` may leave out the dummy pictures
        of rows without a marker. `num_visual_tokens` is the budget per picture in this call, where the connector
        leaves the choice.

        With perceptual weights `merge_weights=True` writes one picture's into the matrices meanwhile, for all threads,
        and `legacy_decode_positions=True` decodes as the published VLoRA did. `perceptual_weights`, what pictures
        became in an earlier `bind_pictures`, replace `images`. A filled `past_key_values` is not used beside pictures,
        because it depends on them.

        Raises:
            NotImplementedError: `inputs_embeds` was passed.
        """
        if "inputs_embeds" in kwargs:
            raise NotImplementedError("`inputs_embeds` is not supported")
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        if inputs is None:
            return super().generate(**kwargs)
        kwargs.pop("position_ids", None)  # numbered anew from the mask, because splicing moves every position
        attention_mask = kwargs.pop("attention_mask", None)
        if attention_mask is None:
            attention_mask = torch.ones_like(inputs)
        if images is not None:
            images, image_sizes = fill_in_dummies(count_markers(inputs, attention_mask), images, image_sizes)
        if self.takes_weights:
            return self._generate_bound(inputs, attention_mask, images, num_visual_tokens, **kwargs)
        _, _, spliced_mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
            inputs,
            None,
            attention_mask,
            None,
            None,
            images,
            image_sizes,
            padding_side="left",
            num_visual_tokens=num_visual_tokens,
        )
        if embeds is None:
            inputs, spliced_mask = _pad_left(inputs, attention_mask)
            embeds = self.get_input_embeddings()(inputs)
        return super().generate(attention_mask=spliced_mask, inputs_embeds=embeds, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Passes `images` and `image_sizes` through when given, for callers of transformers' own `generate`."""
        images, image_sizes = kwargs.pop("images", None), kwargs.pop("image_sizes", None)
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        if images is not None:
            inputs["images"] = images
        if image_sizes is not None:
            inputs["image_sizes"] = image_sizes
        return inputs


def _pad_left(inputs: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move padding to the left; a stable sort of the mask keeps the order."""
    order = mask.long().argsort(dim=1, stable=True)
    return inputs.gather(1, order), mask.gather(1, order)
