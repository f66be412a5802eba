"""How a picture enters a language model: the two mix-ins behind every LLaVA class (contract package.md 8)."""

import logging
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from llava.model.anyres import unpad_image
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.registry import BareParameters, Connector
from llava.model.picture_binding import PictureBinding
from llava.model.picture_splicing import PictureSplicing
from llava.model.vision_config import check_stage1_settings, check_vision_config, write_vision_config
from llava.model.vision_tokenizer import add_image_tokens, gathered
from llava.model.weights import adapter_state, load_weights_only

__all__ = ["LlavaMetaForCausalLM", "LlavaMetaModel", "unpad_image"]

logger = logging.getLogger(__name__)


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
        """Fill what a checkpoint lacks: transformers does not know of bare parameters."""
        super()._init_weights(module)
        if isinstance(module, LlavaMetaModel) and getattr(module, "image_newline", None) is not None:
            nn.init.normal_(module.image_newline, std=1 / math.sqrt(module.config.hidden_size))
        if isinstance(module, BareParameters):
            module.reset_parameters()

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """The tower or None. Under FSDP it is kept in a list, so that it is not a registered sub-module."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give the model a vision tower and a connector, in upstream's order (contract package.md 8.1).

        A model that already has them keeps its own tower, connector and settings: the saved configuration must not
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
            self.load_adapter_state(state, path)
            self.load_tower_state(state, path)

    def load_adapter_state(self, state: dict[str, torch.Tensor], path: str) -> None:
        """Take connector (and `image_newline`, if both sides have one) from a stage-1 file, whatever its prefixes.

        Args:
            state: the file's entries.
            path: where they come from, for the error.

        Raises:
            ValueError: the file's entries do not fit the connector.
        """
        projector = adapter_state(state, "mm_projector")
        if isinstance(self.mm_projector, Connector):
            projector = self.mm_projector.load_published_state(projector)
        try:
            with gathered(list(self.mm_projector.parameters())):
                self.mm_projector.load_state_dict(projector, strict=True)
        except RuntimeError as error:
            cause = self.mm_projector.explain_misfit(projector) if isinstance(self.mm_projector, Connector) else None
            reasons = cause or "; ".join(line.strip() for line in str(error).splitlines()[1:])
            raise ValueError(
                f"{path} does not fit the connector {self.config.mm_projector_type!r} and its settings: {reasons}"
            ) from error
        newline = [value for key, value in state.items() if key.endswith("image_newline")]
        if newline and getattr(self, "image_newline", None) is not None:
            with gathered([self.image_newline]), torch.no_grad():
                self.image_newline.copy_(newline[0])

    def load_tower_state(self, state: dict[str, torch.Tensor], path: str) -> None:
        """Take the vision tower, if the file of a run with --tune_vision_tower holds one; from now on it is ours.

        Args:
            state, path: as in `load_adapter_state`; entries may be missing, none may be too many.

        Raises:
            ValueError: the file's entries do not fit the tower.
        """
        tuned = adapter_state(state, "vision_tower")
        if not tuned:
            return
        tower = self.get_vision_tower()
        parameters = dict(tower.named_parameters())
        wrong = [key for key in tuned if key not in parameters]
        with gathered(list(parameters.values())), torch.no_grad():
            wrong += [k for k, v in tuned.items() if k not in wrong and parameters[k].shape != v.shape]
            if wrong:
                raise ValueError(
                    f"{path} holds another vision tower than {tower.vision_tower_name}: {', '.join(wrong[:3])} does "
                    "not fit; give the --vision_tower that it was trained with"
                )
            for key, value in tuned.items():
                parameters[key].copy_(value)
        self.config.tune_vision_tower = True


class LlavaMetaForCausalLM(PictureSplicing, PictureBinding, ABC):
    """Mixed into a causal language model: splices pictures into its input."""

    @abstractmethod
    def get_model(self) -> LlavaMetaModel:
        """The inner model that holds the tower and the connector."""

    def get_vision_tower(self) -> CLIPVisionTower | None:
        return self.get_model().get_vision_tower()

    @property
    def num_visual_tokens(self) -> int:
        """Tokens that one picture or crop becomes."""
        projector, tower = self.get_model().mm_projector, self.get_vision_tower()
        if isinstance(projector, Connector):
            return projector.num_visual_tokens
        return tower.num_patches + (tower.select_feature == "cls_patch")

    def encode_images(self, images: torch.Tensor, num_visual_tokens: int | None = None) -> Any:
        """Pictures or crops `[N, 3, H, W]` -> visual tokens `[N, T, d]`, `PerceptualWeights`, or both (see `space`).

        Args:
            num_visual_tokens: another T than the model's own, for this call.

        Raises:
            ValueError: the connector cannot change its number of tokens, or not to this one.
        """
        projector, tower = self.get_model().mm_projector, self.get_vision_tower()
        dtype = next((p.dtype for p in projector.parameters()), images.dtype)
        if num_visual_tokens is not None and not getattr(projector, "is_elastic", False):
            raise ValueError(
                f"The connector {self.config.mm_projector_type!r} has a fixed number of visual tokens, "
                f"{self.num_visual_tokens}; num_visual_tokens cannot be {num_visual_tokens}"
            )
        if num_visual_tokens is not None and num_visual_tokens < 1:
            raise ValueError(f"num_visual_tokens must be 1 or more, not {num_visual_tokens}")
        if not isinstance(projector, Connector):
            return projector(tower(images).to(dtype))
        features = tower.encode(images, projector.needs_cls_attention, projector.needs_patch_keys).to(dtype)
        return projector(features) if num_visual_tokens is None else projector(features, num_visual_tokens)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: torch.Tensor | list[torch.Tensor] | None,
        image_sizes: list[tuple[int, int]] | None = None,
        *,
        padding_side: str | None = None,
        num_visual_tokens: int | None = None,
    ) -> tuple[Any, ...]:
        """Splice the pictures into the text (contract package.md 8.3).

        Args:
            input_ids: `[B, n]`, IMAGE_TOKEN_INDEX where a picture goes.
            images: `[N, 3, H, W]`; or `[N, M, 3, H, W]`, or a list of `[M, 3, H, W]` or `[3, H, W]`, M crops each.
            image_sizes: (width, height) per picture, for spatial merging.
            padding_side: instead of `config.tokenizer_padding_side`.
            num_visual_tokens: per picture or crop, instead of the model's own number (elastic connectors).

        Returns:
            `(input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels)`; input_ids is None when
            `inputs_embeds` `[B, m, d]` is there. What the caller passed as None comes back as None.

        Raises:
            ImageCountError: pictures and markers do not match.
        """
        if self.takes_weights:
            raise TypeError(f"The connector {self.config.mm_projector_type!r} gives weights: use bind_pictures")
        batch = self.splice_pictures(
            input_ids,
            attention_mask,
            position_ids,
            labels,
            images,
            image_sizes,
            padding_side=padding_side,
            num_visual_tokens=num_visual_tokens,
        )
        return (
            batch.input_ids,
            batch.position_ids,
            batch.attention_mask,
            past_key_values,
            batch.inputs_embeds,
            batch.labels,
        )

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add `<im_patch>`, `<im_start>`, `<im_end>` as the flags ask (contract package.md 8.3, end)."""
        add_image_tokens(self, model_args, tokenizer)
