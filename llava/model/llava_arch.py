"""How images enter a language model: the two mixins behind every LLaVA class."""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llava.model.anyres import merge_crops, merge_type_of, unpad_image
from llava.model.image_inputs import ImageInputs, Images
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.image_rows import ImageCountError, assign_images, images_to_encode
from llava.model.multimodal_projector.perceptual_weights import PerceptualWeights
from llava.model.multimodal_projector.registry import BareParameters, Connector
from llava.model.multimodal_projector.settings import check_stage1_settings
from llava.model.sequence_plan import SequencePlan
from llava.model.splice import LanguageInputs, count_markers, mask_slots, splice_rows
from llava.model.vision_config import check_vision_config, write_vision_config
from llava.model.vision_state import load_connector_state, load_tower_state
from llava.model.vision_tokenizer import add_image_tokens
from llava.model.weights import load_weights_only

__all__ = ["LlavaMetaForCausalLM", "LlavaMetaModel", "unpad_image"]


class LlavaMetaModel:
    """Mixed in before a base transformer model: adds `vision_tower`, `mm_projector` and `image_newline`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None) is not None:
            self.vision_tower = build_vision_tower(config, delay_load=True)
            self.mm_projector = build_vision_projector(config, delay_load=True)
            check_vision_config(config, self.get_vision_tower(), self.mm_projector)
            if "unpad" in (getattr(config, "mm_patch_merge_type", None) or ""):
                self.image_newline = nn.Parameter(torch.empty(config.hidden_size, dtype=self.dtype))

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint lacks, including bare parameters, which transformers does not know."""
        super()._init_weights(module)
        if isinstance(module, LlavaMetaModel) and getattr(module, "image_newline", None) is not None:
            nn.init.normal_(module.image_newline, std=1 / math.sqrt(module.config.hidden_size))
        if isinstance(module, BareParameters):
            module.reset_parameters()

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """The tower, or None. Under FSDP it is kept in a list, so that it is not a registered submodule."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give the model a vision tower and a connector.

        A model that already has them keeps its tower, connector and settings, so that the saved configuration does not
        contradict the weights.

        Raises:
            ValueError: another connector is asked for than the checkpoint holds, or the settings do not fit the tower.
        """
        if self.get_vision_tower() is None:
            tower = build_vision_tower(model_args)
            self.vision_tower = [tower] if fsdp else tower
        else:
            self.get_vision_tower().load_model()

        tower = self.get_vision_tower()
        write_vision_config(self.config, model_args, tower, has_projector=hasattr(self, "mm_projector"))
        if not hasattr(self, "mm_projector"):
            self.mm_projector = build_vision_projector(self.config)
            check_vision_config(self.config, tower, self.mm_projector)
            if "unpad" in self.config.mm_patch_merge_type:
                width = self.config.hidden_size
                self.image_newline = nn.Parameter(torch.randn(width, dtype=self.dtype) / math.sqrt(width))
        else:
            self.mm_projector.requires_grad_(True)  # LoRA may have frozen it

        if getattr(model_args, "pretrain_mm_mlp_adapter", None):
            path = model_args.pretrain_mm_mlp_adapter
            check_stage1_settings(self.config, path)
            state = load_weights_only(path)
            load_connector_state(self, state, path)
            load_tower_state(self, state, path)


class LlavaMetaForCausalLM(ABC):
    """Mixed into a causal language model: puts images into its inputs."""

    @abstractmethod
    def get_model(self) -> LlavaMetaModel:
        """The inner model that holds the tower and the connector."""

    def get_vision_tower(self) -> CLIPVisionTower | None:
        return self.get_model().get_vision_tower()

    @property
    def connector(self) -> Connector | None:
        return getattr(self.get_model(), "mm_projector", None)

    @property
    def space(self) -> str:
        """`Connector.space`; "input" without a connector, or with another module in its place."""
        return getattr(self.connector, "space", "input")

    @property
    def takes_weights(self) -> bool:
        """Whether images become perceptual weights, with or without visual tokens."""
        return self.space != "input"

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens per image or crop."""
        if isinstance(self.connector, Connector):
            return self.connector.num_visual_tokens
        tower = self.get_vision_tower()
        return tower.num_patches + (tower.select_feature == "cls_patch")

    def encode_images(self, images: torch.Tensor, num_visual_tokens: int | None = None) -> Any:
        """Images or crops `[N, 3, H, W]` -> visual tokens `[N, T, d]`, `PerceptualWeights`, or both (see `space`).

        Args:
            images: float, or uint8 pixels, which the tower normalises.
            num_visual_tokens: T in this call, instead of the model's own.

        Raises:
            ValueError: the connector cannot change its number of tokens, or not to this one.
        """
        connector, tower = self.connector, self.get_vision_tower()
        if num_visual_tokens is not None and not getattr(connector, "is_elastic", False):
            raise ValueError(
                f"The connector {self.config.mm_projector_type!r} has a fixed number of visual tokens, "
                f"{self.num_visual_tokens}; num_visual_tokens cannot be {num_visual_tokens}"
            )
        if num_visual_tokens is not None and num_visual_tokens < 1:
            raise ValueError(f"num_visual_tokens must be 1 or more, not {num_visual_tokens}")
        if images.dtype == torch.uint8:
            images = tower.normalize(images)
        dtype = next((p.dtype for p in connector.parameters()), images.dtype)
        if not isinstance(connector, Connector):  # replaced or wrapped by the user: called as in LLaVA
            return connector(tower(images).to(dtype))
        features = tower.encode(images, connector.needs_cls_attention, connector.needs_patch_keys)
        return connector(features.to(dtype), num_visual_tokens)

    def assemble_inputs(
        self, text: LanguageInputs, images: ImageInputs | None = None, padding_side: str | None = None
    ) -> LanguageInputs:
        """Put the images of a batch into its inputs: as visual tokens, as perceptual weights, or as both.

        Args:
            text: `input_ids` `[B, n]` with IMAGE_TOKEN_INDEX at the slot of each image. Its `weights`, from an earlier
                call, replace the images of a connector that makes nothing else.
            images: one per slot, and a dummy one per row without a slot.
            padding_side: of rows whose length changes, instead of `config.tokenizer_padding_side`.

        Returns:
            `inputs_embeds` instead of `input_ids` where visual tokens were spliced in; masked slots and `weights` where
            images become weights only.

        Raises:
            ImageCountError: images and slots do not match.
            ValueError: weights were given beside images, a row starts with an image that becomes weights, or the
                connector cannot encode these images.
        """
        if text.weights is not None:
            if images is not None or self.space == "both" or (self.space == "input" and text.has_markers):
                raise ValueError("perceptual_weights replace images that become weights only; pass images instead")
            return mask_slots(text)
        is_one_token = text.input_ids.shape[1] == 1  # usually a decoding step
        has_no_images = images is None or (len(images) == 0 and self.takes_weights)
        if has_no_images or self.get_vision_tower() is None:
            if (self.takes_weights or not is_one_token) and text.has_markers:
                raise ImageCountError(
                    "The text has an image marker, but no image was given (or the model has no vision tower)"
                )
            return text
        if is_one_token and self.space != "parameter":
            return text
        slots_only = None
        if self.space == "parameter":
            slots_only = mask_slots(text)
        else:
            self._check_splicing()
        rows = assign_images(count_markers(text.input_ids, text.attention_mask), len(images))
        chosen = images_to_encode(rows, len(images))
        visual, weights = self.encode_chosen(images, chosen)
        if weights is not None:
            places = {image: place for place, image in enumerate(chosen)}
            weights = weights.for_rows([[places[image] for image in row] for row in rows])
        if slots_only is not None:
            return replace(slots_only, weights=weights)
        batch = self._splice(text, [[visual[i] for i in row] for row in rows], padding_side)
        if chosen and not any(rows):
            batch = replace(batch, inputs_embeds=self._with_gradient(batch.inputs_embeds, visual[chosen[0]]))
        return replace(batch, weights=weights)

    def assemble_planned(self, plan: SequencePlan, images: ImageInputs | None) -> LanguageInputs:
        """Put the images of a batch into its inputs as a plan says, without reading anything back from the device.

        Args:
            plan: on the decoder's device.
            images: those that the plan has places for, in its order; in a batch without any, one that is encoded with
                weight 0, so that every process does the same.

        Returns:
            `inputs_embeds` `[R, n, d]`, `position_ids`, and the perceptual weights of connectors that make them.
        """
        embeds = self.get_input_embeddings()(plan.token_ids)
        if images is None:
            return LanguageInputs(None, position_ids=plan.position_ids, labels=plan.labels, inputs_embeds=embeds)
        visual, weights = self.encode_chosen(images, list(range(len(images))))
        if visual:
            tokens = torch.cat(list(visual.values()))
            if len(plan.visual_places):
                embeds = plan.insert_visual(embeds, tokens)
            else:
                embeds = self._with_gradient(embeds, tokens)
        if weights is not None:
            where = plan.weights
            inputs = {letter: a[: where.count] for letter, a in weights.inputs.items()}
            rows = len(plan.token_ids)
            weights = weights._replace(inputs=inputs, rows=where.rows, num_rows=rows, segments=where.segments())
        return LanguageInputs(None, None, plan.position_ids, plan.labels, embeds, weights)

    def _with_gradient(self, embeds: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
        """`embeds`, joined with the tokens of an image that no row shows, and what merging its crops would add.

        They weigh 0 in the loss; only the gradients are wanted, which all processes must have.
        """
        newline = getattr(self.get_model(), "image_newline", None)
        total = unused.sum() if newline is None else unused.sum() + newline.sum().to(unused)
        return embeds + (total * 0).to(embeds)

    def _check_splicing(self) -> None:
        """Refuse settings that cannot be spliced, before any work."""
        config = self.config
        if getattr(config, "tune_mm_mlp_adapter", False) and getattr(config, "mm_use_im_start_end", False):
            raise NotImplementedError("tune_mm_mlp_adapter together with mm_use_im_start_end is not supported")
        merge_type_of(config)

    def _splice(
        self, text: LanguageInputs, visual: list[list[torch.Tensor]], padding_side: str | None
    ) -> LanguageInputs:
        """`splice_rows` with this model's embeddings; what the caller left out stays None."""
        ids, mask, config = text.input_ids, text.attention_mask, self.config
        batch = splice_rows(
            embed=self.get_input_embeddings(),
            input_ids=ids,
            attention_mask=mask,
            labels=text.labels,
            visual=visual,
            max_length=getattr(config, "tokenizer_model_max_length", None),
            padding_side=padding_side or getattr(config, "tokenizer_padding_side", "right"),
        )
        return replace(
            batch,
            attention_mask=None if mask is None else batch.attention_mask.to(mask.dtype),
            position_ids=None if text.position_ids is None else batch.position_ids,
            labels=None if text.labels is None else batch.labels,
        )

    def encode_chosen(
        self, images: ImageInputs, chosen: list[int]
    ) -> tuple[dict[int, torch.Tensor], PerceptualWeights | None]:
        """Encode some images of a batch.

        Returns:
            Visual tokens `[T_i, d]` by number, and perceptual weights in the order of `chosen`; empty and None where
            the connector does not make them.
        """
        if not chosen:
            return {}, None
        if self.takes_weights:
            images = images.as_single_views()
        if not images.is_single_view:
            return dict(zip(chosen, self._encode_crops(images, chosen), strict=True)), None
        pixels = images.pixels[chosen] if len(chosen) < len(images) else images.pixels
        encoded = self.encode_images(pixels, images.num_visual_tokens)
        tokens, weights = encoded if self.space == "both" else (encoded, None)
        if self.space == "parameter":
            return {}, encoded
        return dict(zip(chosen, tokens, strict=True)), weights

    def _encode_crops(self, images: ImageInputs, chosen: list[int]) -> list[torch.Tensor]:
        """All crops of the chosen images as one batch, merged per image."""
        crops = [images.crops_of(i) for i in chosen]
        tokens = self.encode_images(torch.cat(crops), images.num_visual_tokens).split([len(c) for c in crops])
        return [
            merge_crops(
                tokens_of_crops,
                config=self.config,
                tower=self.get_vision_tower(),
                image_size=images.size_of(i),
                image_newline=getattr(self.get_model(), "image_newline", None),
            )
            for i, tokens_of_crops in zip(chosen, tokens, strict=True)
        ]

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: list[tuple[int, int]] | None = None,
        *,
        padding_side: str | None = None,
        num_visual_tokens: int | None = None,
    ) -> tuple[Any, ...]:
        """`assemble_inputs` in LLaVA's form, for connectors that make visual tokens only.

        Args:
            input_ids: `[B, n]`, IMAGE_TOKEN_INDEX where an image goes.
            images, image_sizes, num_visual_tokens: see `ImageInputs`.
            padding_side: instead of `config.tokenizer_padding_side`.

        Returns:
            `(input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels)`; input_ids is None when
            `inputs_embeds` `[B, m, d]` replaces it. What the caller passed as None comes back as None.

        Raises:
            ImageCountError: images and markers do not match.
            TypeError: the connector makes perceptual weights.
        """
        if self.takes_weights:
            raise TypeError(f"The connector {self.config.mm_projector_type!r} makes weights: use assemble_inputs")
        text = LanguageInputs(input_ids, attention_mask, position_ids, labels)
        batch = self.assemble_inputs(text, ImageInputs.given(images, image_sizes, num_visual_tokens), padding_side)
        return (
            batch.input_ids,
            batch.position_ids,
            batch.attention_mask,
            past_key_values,
            batch.inputs_embeds,
            batch.labels,
        )

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add `<im_patch>`, `<im_start>` and `<im_end>` as the flags ask."""
        add_image_tokens(self, model_args, tokenizer)
