"""The CLIP vision tower."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PretrainedConfig
from transformers.models.clip import CLIPImageProcessorPil

from llava.model.checkpoint_kind import has_tuned_tower
from llava.model.multimodal_encoder.s2 import S2_DEFAULT_SCALES, forward_multiscale, parse_scales
from llava.model.multimodal_projector.class_attention import class_token_attention
from llava.model.multimodal_projector.vision_features import VisionFeatures

logger = logging.getLogger(__name__)


class ClipBackbone(nn.Module):
    """transformers' CLIP under the attribute `vision_model`.

    transformers 5 dropped that level, but the key names of every released LLaVA checkpoint contain it
    (`model.vision_tower.vision_tower.vision_model.*`); with it, loading and saving need no renaming.
    """

    def __init__(self, vision_model: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model

    @property
    def config(self) -> CLIPVisionConfig:
        return self.vision_model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_model.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.vision_model(*args, **kwargs)


def is_building_on_meta() -> bool:
    """Whether the surrounding `from_pretrained` is constructing modules without storage."""
    return torch.empty(0).device.type == "meta"


def check_is_clip(vision_tower: str) -> None:
    """Refuse towers of other kinds, which transformers would open as a CLIP with random weights.

    Raises:
        ValueError: the folder's config.json says another model type.
    """
    model_type = PretrainedConfig.get_config_dict(vision_tower)[0].get("model_type", "clip")
    if model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"{vision_tower} is a vision tower of type {model_type!r}; only CLIP is supported, whose class token the "
            "connectors need (SigLIP has none). Use for example openai/clip-vit-large-patch14-336"
        )


class CLIPVisionTower(nn.Module):
    """A CLIP image encoder that returns the hidden state of one layer; frozen, unless `unfreeze()` is called.

    Args:
        vision_tower: folder or Hub name of the CLIP model.
        args: carries `mm_vision_select_layer`, optionally `mm_vision_select_feature` (`patch` or `cls_patch`),
            `mm_anchor_layer`, and `unfreeze_mm_vision_tower` or `tune_vision_tower`.
        delay_load: fetch the configuration only; `load_model()` does the rest. A tower that was trained
            (`unfreeze_mm_vision_tower`, `tune_vision_tower`) is built at once all the same: the language model's
            checkpoint fills it.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.select_layer: int = args.mm_vision_select_layer
        self.select_feature: str = getattr(args, "mm_vision_select_feature", "patch")
        self.anchor_layer: int | None = getattr(args, "mm_anchor_layer", None)  # None: the select layer

        check_is_clip(vision_tower)
        is_own = getattr(args, "unfreeze_mm_vision_tower", False) or has_tuned_tower(args)
        if delay_load and not is_own:
            self.cfg_only = CLIPVisionConfig.from_pretrained(vision_tower)
        elif is_building_on_meta():
            # `from_pretrained` cannot run inside another one: leave empty modules for the outer checkpoint to fill.
            self.cfg_only = CLIPVisionConfig.from_pretrained(vision_tower)
            self.vision_tower = ClipBackbone(CLIPVisionModel(self.cfg_only))
            self._load_image_processor()
            self.is_loaded = True
        else:
            self.load_model()
        self._hidden_state_index(self.select_layer, "mm_vision_select_layer")  # refuse a wrong one before any work
        if self.anchor_layer is not None:
            self._anchor_block()

    def load_model(self, device_map: Any = None, dtype: torch.dtype | None = None) -> None:
        """Load weights and image processor, and freeze the weights. A second call only logs a message.

        Args:
            device_map: as in `from_pretrained`.
            dtype: precision of the weights; float32 by default.
        """
        if self.is_loaded:
            logger.info("%s is already loaded, `load_model` called again, skipping.", self.vision_tower_name)
            return
        self._load_image_processor()
        # Under ZeRO-3 loading draws random numbers; the connector built next must start the same without it.
        with torch.random.fork_rng(devices=[]):
            clip = CLIPVisionModel.from_pretrained(
                self.vision_tower_name, device_map=device_map, dtype=dtype or torch.float32
            )
        clip.requires_grad_(False)
        self.vision_tower = ClipBackbone(clip)
        self.is_loaded = True

    def _load_image_processor(self) -> None:
        # The PIL backend by name: with torchvision installed the generic one resamples differently.
        self.image_processor = CLIPImageProcessorPil.from_pretrained(self.vision_tower_name)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels `[N, 3, H, W]` uint8 -> float32, rescaled and normalised as the image processor does on the host."""
        processor = self.image_processor
        channels = zip(images.unbind(1), processor.image_mean, processor.image_std, strict=True)
        return torch.stack([(x * processor.rescale_factor - mean) / std for x, mean, std in channels], dim=1)

    def feature_select(self, image_forward_outs: Any) -> torch.Tensor:
        """The select layer's tokens `[N, tokens, D]` out of a CLIP output with `hidden_states`."""
        return self.select_tokens(image_forward_outs.hidden_states[self.select_layer])

    def select_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drop the class token (`patch`) or keep it (`cls_patch`).

        Raises:
            ValueError: any other `select_feature`.
        """
        if self.select_feature == "patch":
            return hidden[:, 1:]
        if self.select_feature == "cls_patch":
            return hidden
        raise ValueError(f"Unexpected select feature: {self.select_feature}")

    def _hidden_state_index(self, layer: int, flag: str) -> int:
        """0 is the embedding, k the output of block k-1; a negative `layer` counts from the end."""
        blocks = self.config.num_hidden_layers
        index = layer if layer >= 0 else blocks + 1 + layer
        if not 0 <= index <= blocks:
            raise ValueError(
                f"{flag} {layer} is outside the {blocks + 1} hidden states of {self.vision_tower_name}; "
                f"use -{blocks + 1} to {blocks}"
            )
        return index

    def _anchor_block(self) -> int:
        """The block whose class attention is wanted: the one that makes the anchor layer's hidden state."""
        flag, layer = "mm_anchor_layer", self.anchor_layer
        if layer is None:
            flag, layer = "mm_vision_select_layer", self.select_layer
        index = self._hidden_state_index(layer, flag)
        if index == 0:
            raise ValueError(
                f"{flag} selects the embeddings, in front of the first block: there is no class attention there. "
                "Choose a later layer, for example -2"
            )
        return index - 1

    def _encode(
        self, images: torch.Tensor, need_cls_attention: bool = False, need_patch_keys: bool = False
    ) -> VisionFeatures:
        """Run the blocks that are needed, no more. `images` `[N, 3, H, W]` on any device, of any float dtype."""
        select_index = self._hidden_state_index(self.select_layer, "mm_vision_select_layer")
        anchor_block = self._anchor_block() if need_cls_attention or need_patch_keys else -1
        clip = self.vision_tower.vision_model
        hidden = clip.embeddings(images.to(device=self.device, dtype=self.dtype))
        selected = hidden = clip.pre_layrnorm(hidden)
        cls_attention, keys = None, None
        for i, layer in enumerate(clip.encoder.layers[: max(select_index, anchor_block + 1)]):
            if i == anchor_block:
                with torch.no_grad():
                    cls_attention, keys = class_token_attention(layer, hidden)
            if i >= select_index and i == anchor_block:
                break  # of an anchor layer above the select layer only the attention is wanted
            hidden = layer(hidden, None)
            if i + 1 == select_index:
                selected = hidden
        return VisionFeatures(
            selected, cls_attention if need_cls_attention else None, keys if need_patch_keys else None
        )

    def encode(
        self, images: torch.Tensor, need_cls_attention: bool = False, need_patch_keys: bool = False
    ) -> VisionFeatures:
        """Features for a connector, class token included, whatever `select_feature` says.

        Args:
            images: `[N, 3, H, W]`.
            need_cls_attention: also compute the class token's attention row of the select (or anchor) layer's block.
            need_patch_keys: also return that block's attention keys.

        Returns:
            `VisionFeatures`; `hidden` is in the dtype of `images`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trainable):
            return self._encode(images, need_cls_attention, need_patch_keys).to(images.dtype)

    @property
    def is_trainable(self) -> bool:
        """Whether any weight of the tower requires a gradient."""
        return any(p.requires_grad for p in self.vision_tower.parameters())

    def unfreeze(self) -> None:
        """Let the tower train up to the select layer; later blocks are never run."""
        clip = self.vision_tower.vision_model
        used = clip.encoder.layers[: self._hidden_state_index(self.select_layer, "mm_vision_select_layer")]
        for part in (clip.embeddings, clip.pre_layrnorm, used):
            part.requires_grad_(True)

    def forward(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Tokens of the select layer: `[N, tokens, D]`, or for a list of `[3, H, W]` a list of `[1, tokens, D]`.

        The result has the dtype of the input.
        """
        if isinstance(images, list):
            return [self.forward(image.unsqueeze(0)) for image in images]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trainable):
            return self.select_tokens(self._encode(images).hidden).to(images.dtype)

    @property
    def dummy_feature(self) -> torch.Tensor:
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def config(self) -> CLIPVisionConfig:
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches per image, without the class token."""
        return self.num_patches_per_side**2


class CLIPVisionTowerS2(CLIPVisionTower):
    """CLIP at several scales, joined on the channels. `args.s2_scales`: `336,672,1008`."""

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        # Set before the parent's constructor, which may load the model at once and needs them then.
        self.s2_scales = parse_scales(getattr(args, "s2_scales", S2_DEFAULT_SCALES))
        self.s2_split_size = self.s2_scales[0]
        self.s2_image_size = self.s2_scales[-1]
        super().__init__(vision_tower, args, delay_load)
        if self.select_feature != "patch":
            raise ValueError("The S2 tower pools square patch maps: it needs mm_vision_select_feature patch")

    def _load_image_processor(self) -> None:
        super()._load_image_processor()
        size = self.s2_image_size
        self.image_processor.size = {"shortest_edge": size}
        self.image_processor.crop_size = {"height": size, "width": size}

    def encode(
        self, images: torch.Tensor, need_cls_attention: bool = False, need_patch_keys: bool = False
    ) -> VisionFeatures:
        """Multi-scale patch features `[N, P, D * scales]` without a class token.

        Raises:
            ValueError: the connector asks for class attention or keys, which several scales do not have.
        """
        if need_cls_attention or need_patch_keys:
            raise ValueError(
                "The S2 tower gives multi-scale patch features and no class token; use a grid connector "
                "(linear, mlp2x_gelu) with it, or set s2 to false"
            )
        return VisionFeatures(self.forward(images), has_class_token=False)

    def forward(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(images, list):
            return [self.forward(image.unsqueeze(0)) for image in images]
        features = forward_multiscale(super().forward, images, self.s2_scales)
        return features.to(images.dtype)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size * len(self.s2_scales)
