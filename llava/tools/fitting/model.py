"""The model of a run on the meta device: shapes and parameters without memory."""

import json
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel
from transformers.initialization import no_init_weights

from llava.model.checkpoint_kind import read_config_dict
from llava.model.families import classes_of
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import ClipBackbone, CLIPVisionTower
from llava.model.multimodal_projector.registry import Connector
from llava.model.vision_config import write_vision_config
from llava.tools.fitting.flags import elastic_budgets
from llava.tools.fitting.parameters import trace_on_meta
from llava.tools.fitting.traced import TracedMemory
from llava.tools.flops import GeneratorShape, LLMShape, ResamplerShape, VisionShape

_VICUNA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
_CLIP_L = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_LLAVA = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
}  # fmt: skip
# Published sizes of the models that the scripts name, so that nothing has to be fetched for them.
KNOWN = {
    "lmsys/vicuna-7b-v1.5": _VICUNA_7B,
    "lmsys/vicuna-13b-v1.5": _VICUNA_13B,
    "liuhaotian/llava-v1.5-7b": _VICUNA_7B | _LLAVA | {"model_type": "llava_llama"},
    "liuhaotian/llava-v1.5-13b": _VICUNA_13B | _LLAVA | {"model_type": "llava_llama"},
    "openai/clip-vit-large-patch14-336": _CLIP_L,
    "openai/clip-vit-large-patch14": _CLIP_L | {"image_size": 224},
}


@dataclass(frozen=True)
class MetaModel:
    """A LLaVA model on the meta device, tower included, with the sizes that arithmetic needs."""

    model: PreTrainedModel
    tower: CLIPVisionTower
    connector: Connector
    _traces: dict[Any, tuple[TracedMemory, TracedMemory]] = field(default_factory=dict, compare=False, repr=False)

    def trace(self, images: int, dtype: torch.dtype) -> tuple[TracedMemory, TracedMemory]:
        """Memory of tower and connector for a batch of images, as `requires_grad` now stands; traced once."""
        key = images, dtype, self.tower.is_trainable, any(p.requires_grad for p in self.connector.parameters())
        if key not in self._traces:
            self._traces[key] = trace_on_meta(self.tower, self.connector, images, dtype)
        return self._traces[key]

    @property
    def visual_tokens(self) -> int:
        """Positions that an image takes in the sequence; perceptual weights leave one, which is masked."""
        return max(self.connector.num_visual_tokens, 1)

    @property
    def llm(self) -> LLMShape:
        config = self.model.config
        heads = config.num_attention_heads
        return LLMShape(
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            heads=heads,
            kv_heads=config.num_key_value_heads or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    @property
    def vision(self) -> VisionShape:
        config = self.tower.config
        return VisionShape(
            width=config.hidden_size,
            blocks=config.num_hidden_layers,
            heads=config.num_attention_heads,
            side=self.tower.num_patches_per_side,
            patch_values=3 * config.patch_size**2,
        )

    @property
    def resampler(self) -> ResamplerShape:
        names = {"depth": "mm_resampler_depth", "heads": "mm_resampler_heads", "dim_head": "mm_resampler_dim_head"}
        return _filled(ResamplerShape(), self.model.config, names | {"ff_mult": "mm_resampler_ff_mult"})

    @property
    def generator(self) -> GeneratorShape | None:
        """Of a connector that makes weights; None of others."""
        if self.connector.space == "input":
            return None
        names = {"width": "vlora_dim", "depth": "vlora_depth", "rank": "vlora_rank", "letters": "vlora_type"}
        names |= {"skip": "skip_layers", "is_separate": "weights_sep", "ratio": "vlora_ratio"}
        return _filled(GeneratorShape(), self.model.config, names)


def _filled(shape: Any, config: Any, names: dict[str, str]) -> Any:
    stated = {key: getattr(config, name, None) for key, name in names.items()}
    return type(shape)(**{key: value for key, value in stated.items() if value is not None})


def stored_config(name: str) -> dict[str, Any]:
    """config.json of a folder, of a published model that is known here, or from the Hub.

    Raises:
        OSError: it cannot be read.
    """
    return dict(KNOWN[name]) if name in KNOWN and not os.path.isdir(name) else read_config_dict(name, required=True)


def build_meta_model(flags: Namespace) -> MetaModel:
    """The model that the flags describe, by the code that training builds it with; of several budgets the largest.

    Raises:
        OSError: a configuration cannot be read.
        ValueError: the settings do not fit one another or the models; the message is the training program's.
        NotImplementedError: neither a Llama nor a Mistral.
    """
    stored = stored_config(flags.model_name_or_path)
    family = stored.pop("model_type", "llama").removeprefix("llava_")
    if family == "llama" and flags.mm_projector_type == "vlora":
        family = "vlora"
    is_llava = bool(stored.get("mm_vision_tower"))
    model_class, config_class = classes_of(family, flags.model_name_or_path)
    with _tower_folder(stored["mm_vision_tower"] if is_llava else flags.vision_tower) as folder:
        stored = stored | ({"mm_vision_tower": folder} if is_llava else {})
        config = config_class.from_dict(stored)
        config.image_aspect_ratio = flags.image_aspect_ratio
        described = copy(flags)
        described.vision_tower = folder
        described.mm_num_visual_tokens = max(elastic_budgets(flags), default=flags.mm_num_visual_tokens)
        with torch.device("meta"), no_init_weights():
            tower = build_vision_tower(config if is_llava else described, delay_load=True)
            write_vision_config(config, described, tower, has_projector=is_llava)
            model = model_class(config)
            clip_config = CLIPVisionConfig.from_pretrained(folder)
            clip = CLIPVisionModel._from_config(clip_config, attn_implementation="sdpa")
    tower = model.get_vision_tower()
    tower.vision_tower = ClipBackbone(clip)
    tower.is_loaded = True
    return MetaModel(model, tower, model.get_model().mm_projector)


@contextmanager
def _tower_folder(name: str | None) -> Iterator[str]:
    """A folder with the tower's configuration.

    Raises:
        ValueError: no tower is given.
    """
    if name is None:
        raise ValueError("there is no --vision_tower, so a plain language model would be trained")
    if os.path.isdir(name):
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(stored_config(name)), encoding="utf-8")
        yield folder
