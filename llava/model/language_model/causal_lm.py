"""`forward` and `generate` with images, shared by the LLaVA classes of all LLM families."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import is_flash_attention_requested

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.image_inputs import ImageInputs, Images
from llava.model.label_loss import label_loss
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.multimodal_projector.perceptual_weights import BoundWeights, PerceptualWeights, install_hooks
from llava.model.multimodal_projector.weight_merging import merged
from llava.model.planned_attention import PLANNED_FLASH, PLANNED_SDPA, prepare_attention
from llava.model.sequence_plan import SequencePlan
from llava.model.splice import LanguageInputs, count_markers


class LlavaCausalLMMixin(LlavaMetaForCausalLM):
    """Mixed in before a causal language model of transformers."""

    # As in LLaVA, the loss is the mean over one micro-batch, not over the accumulated batch.
    accepts_loss_kwargs = False
    # The tower is loaded from `mm_vision_tower`; a checkpoint may hold its weights as well.
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
        images: Images | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        return_dict: bool | None = None,
        num_visual_tokens: int | None = None,
        perceptual_weights: PerceptualWeights | BoundWeights | None = None,
        legacy_decode_positions: bool = False,
        plan: SequencePlan | None = None,
        **kwargs: Any,
    ) -> Any:
        """Assemble the inputs, then run the language model's forward.

        Args:
            input_ids: `[B, n]`, IMAGE_TOKEN_INDEX where an image goes.
            inputs_embeds: `[B, n, d]`, already assembled; `images` are ignored.
            images, image_sizes, num_visual_tokens: see `ImageInputs`.
            perceptual_weights: from an earlier `assemble_inputs`, instead of `images`.
            legacy_decode_positions: after the prompt, number positions one lower in rows with an image, as the
                published VLoRA did.
            plan: of a training step, instead of everything but the images; see `SequencePlan`.
        """
        if plan is not None:
            return self._forward_planned(plan, ImageInputs.given(images, image_sizes, num_visual_tokens))
        is_later_step = past_key_values is not None and past_key_values.get_seq_length() > 0
        if is_later_step and images is not None and self.takes_weights:
            raise ValueError(
                "The weights of an image act in every step, not only in the one that shows it: pass perceptual_weights "
                "(see assemble_inputs) instead of images, or call the model's own generate"
            )
        batch = LanguageInputs(input_ids, attention_mask, position_ids, labels, inputs_embeds, perceptual_weights)
        if inputs_embeds is None and not (is_later_step and perceptual_weights is not None):
            batch = self.assemble_inputs(batch, ImageInputs.given(images, image_sizes, num_visual_tokens))
        if batch.weights is not None:
            batch = self._install_weights(batch)
            kwargs["perceptual_weights"] = batch.weights
            if legacy_decode_positions and is_later_step:
                if position_ids is None:
                    raise ValueError("legacy_decode_positions needs position_ids: pass those that are to be corrected")
                batch = replace(batch, position_ids=batch.weights.one_position_earlier(position_ids))
        optional = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
        }
        return super().forward(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            past_key_values=past_key_values,
            inputs_embeds=batch.inputs_embeds,
            labels=batch.labels,
            use_cache=use_cache,
            **{name: value for name, value in optional.items() if value is not None},
            **kwargs,
        )

    def _forward_planned(self, plan: SequencePlan, images: ImageInputs | None) -> Any:
        """A training step that reads nothing back from the device.

        Raises:
            ValueError: the batch is packed, but the decoder's attention knows no borders.
        """
        batch = self.assemble_planned(plan, images)
        options: dict[str, Any] = {"inputs_embeds": batch.inputs_embeds, "position_ids": batch.position_ids}
        if batch.weights is not None:
            options["perceptual_weights"] = self._install_weights(batch).weights
        attention = plan.attention
        if self.config._attn_implementation in (PLANNED_SDPA, PLANNED_FLASH):
            window, device = getattr(self.config, "sliding_window", None), batch.inputs_embeds.device
            options["attention_plan"] = prepare_attention(attention, plan.token_ids.shape[1], device, window)
            # transformers passes a mask of four dimensions on unread; it would derive one from anything else.
            options["attention_mask"] = plan.mask[None, None, :1]
        elif attention.lengths is not None:
            raise ValueError(
                f"A packed batch needs attn_implementation {PLANNED_SDPA} or {PLANNED_FLASH}, which keep its "
                f"sequences apart, not {self.config._attn_implementation}"
            )
        else:
            options["attention_mask"] = plan.mask if attention.visible is None else plan.mask & attention.visible
        if plan.loss is None:
            return super().forward(labels=batch.labels, use_cache=False, **options)
        hidden = self.get_model()(use_cache=False, **options).last_hidden_state
        return CausalLMOutputWithPast(loss=label_loss(self.lm_head, hidden, plan.loss))

    def _install_weights(self, batch: LanguageInputs) -> LanguageInputs:
        """Bind the weights to the layers' dtype and make sure that the decoder layers have their hooks.

        Raises:
            ValueError: the weights are for another number of rows, or the attention cannot train with them.
        """
        weights = batch.weights
        if batch.labels is not None and self.space == "parameter" and is_flash_attention_requested(self.config):
            raise ValueError(
                "Training with perceptual weights needs attn_implementation sdpa or eager: FlashAttention drops "
                "masked positions, but the image's slot predicts the first word of a caption"
            )
        rows = batch.input_ids if batch.inputs_embeds is None else batch.inputs_embeds
        if len(rows) != weights.num_rows:
            raise ValueError(
                f"The perceptual weights are for {weights.num_rows} rows, but the batch has {len(rows)}; "
                "`repeat_rows` adapts them to rows that are repeated"
            )
        if isinstance(weights, PerceptualWeights):
            weights = weights.bind(self.get_input_embeddings().weight.dtype)
        install_hooks(self.get_model().layers, weights)
        return replace(batch, weights=weights)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        num_visual_tokens: int | None = None,
        perceptual_weights: PerceptualWeights | None = None,
        merge_weights: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Generate from a prompt with images; returns only the new token ids `[B, m]`, never the prompt.

        Rows are padded on the left internally, whatever the configuration says, so that a batch gives the same answers
        as its rows one by one.

        Args:
            inputs: `[B, n]` (also accepted as `input_ids`); `attention_mask` `[B, n]` marks its padding.
            images, image_sizes, num_visual_tokens: see `ImageInputs`. The dummy images of rows without a marker may be
                left out.
            perceptual_weights: from an earlier `assemble_inputs`, instead of `images`.
            merge_weights: write the weights of the one image into the matrices during the call, for all threads.
            kwargs: for transformers' `generate`, and `legacy_decode_positions` (see `forward`). A filled
                `past_key_values` is ignored when images become weights, because it was computed with other weights.

        Raises:
            NotImplementedError: `inputs_embeds` was passed.
            ValueError: see `assemble_inputs`.
        """
        if "inputs_embeds" in kwargs:
            raise NotImplementedError("`inputs_embeds` is not supported")
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        if inputs is None:
            return super().generate(**kwargs)
        kwargs.pop("position_ids", None)  # recomputed from the mask, because splicing moves every position
        mask = kwargs.pop("attention_mask", None)
        inputs, mask = _pad_left(inputs, torch.ones_like(inputs) if mask is None else mask)
        shown = ImageInputs.given(images, image_sizes, num_visual_tokens)
        if shown is not None:
            shown = shown.with_dummies(count_markers(inputs, mask))
        if merge_weights and not self.takes_weights:
            raise ValueError("merge_weights needs a connector that makes perceptual weights, such as vlora")
        if self.takes_weights:
            self._check_weights_prompt(inputs)
            past = kwargs.get("past_key_values")
            has_images = shown is not None or perceptual_weights is not None
            if has_images and past is not None and past.get_seq_length() > 0:
                del kwargs["past_key_values"]
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        text = LanguageInputs(inputs, mask, positions, weights=perceptual_weights)
        batch = self.assemble_inputs(text, shown, padding_side="left")
        embeds = batch.inputs_embeds
        if embeds is None:
            embeds = self.get_input_embeddings()(batch.input_ids)
        kwargs |= {"attention_mask": batch.attention_mask, "inputs_embeds": embeds, "position_ids": batch.position_ids}
        if batch.weights is None:
            return super().generate(**kwargs)
        if merge_weights:
            with merged(self.get_model().layers, batch.weights) as rest:
                return super().generate(perceptual_weights=rest, **kwargs)
        return super().generate(perceptual_weights=batch.weights, **kwargs)

    def _check_weights_prompt(self, inputs: torch.Tensor) -> None:
        if is_flash_attention_requested(self.config) and (inputs[:, -1] == IMAGE_TOKEN_INDEX).any():
            raise ValueError("With FlashAttention a prompt cannot end with an image: end it with text, or use sdpa")

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, perceptual_weights: PerceptualWeights | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Called by transformers once per generation; binds the weights for all its steps."""
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if perceptual_weights is not None:
            repeated = perceptual_weights if expand_size == 1 else perceptual_weights.repeat_rows(expand_size)
            kwargs["perceptual_weights"] = repeated.bind(self.get_input_embeddings().weight.dtype)
        return input_ids, kwargs

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
