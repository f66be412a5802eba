"""A small LLaVA in the manner of other code bases, written for these tests: it calls the bridge where a graft does.

It imports transformers and the bridge only, so that it runs under every transformers since 4.31.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from patches import bridge

IMAGE = -200
SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
WEIGHTS = {"vlora_dim": 16, "vlora_depth": 1, "vlora_heads": 2, "vlora_rank": 2, "vlora_type": "qkvo"}
TOKENS = {"mm_num_visual_tokens": 9, "mm_resampler_depth": 1, "mm_resampler_heads": 2, "mm_resampler_dim_head": 8}


class HostTower(nn.Module):
    """A frozen CLIP that returns the patches of one layer."""

    def __init__(self, select_layer: int = -2) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
        self.vision_tower.requires_grad_(False)
        self.select_layer = select_layer
        self.config, self.hidden_size, self.num_patches = self.vision_tower.config, VISION["hidden_size"], 16

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vision_tower(images, output_hidden_states=True).hidden_states[self.select_layer][:, 1:]


class HostModel(LlamaModel):
    """The language model with a tower and a connector."""

    def get_vision_tower(self) -> HostTower:
        return self.vision_tower

    def initialize_vision_modules(self, model_args: Any) -> None:
        self.vision_tower = HostTower()
        self.config.mm_projector_type = model_args.mm_projector_type
        self.config.mm_hidden_size = self.vision_tower.hidden_size
        bridge.write_settings(self, model_args)
        if getattr(self, "mm_projector", None) is None:
            connector = bridge.build_connector(self.config)
            self.mm_projector = nn.Linear(32, 32) if connector is None else connector


class HostMixin:
    """Images in front of a causal language model; only rows of one length, without padding, get visual tokens."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bridge.carry_weights(cls)

    def get_model(self) -> HostModel:
        return self.model

    def get_vision_tower(self) -> HostTower:
        return self.model.get_vision_tower()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        visual_tokens = bridge.encode_images(self, images)
        if visual_tokens is not None:
            return visual_tokens
        return self.model.mm_projector(self.get_vision_tower()(images))

    def prepare(self, ids: Any, mask: Any, labels: Any, images: Any) -> tuple[Any, ...]:
        """Ids, mask, embeddings and labels for the language model."""
        assembled = bridge.assemble_inputs(self, ids, mask, labels, images)
        if assembled is not None:
            return None, mask, assembled.inputs_embeds, assembled.labels
        if images is None:
            return ids, mask, None, labels
        if ids.shape[1] == 1:  # a decoding step: everything in the cache is attended to
            return ids, None, None, labels
        rows = []
        for row, tokens in zip(ids, self.encode_images(images)):
            place = int((row == IMAGE).nonzero())
            text = self.model.embed_tokens(row.masked_fill(row == IMAGE, 0))
            rows.append(torch.cat([text[:place], tokens, text[place + 1 :]]))
        return None, None, torch.stack(rows), None


class Host(HostMixin, LlamaForCausalLM):
    """The model of both hosts."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = HostModel(config)

    def forward(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, images=None, **kwargs: Any
    ) -> Any:
        if inputs_embeds is None:
            input_ids, attention_mask, inputs_embeds, labels = self.prepare(input_ids, attention_mask, labels, images)
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, labels=labels, **kwargs
        )


class NewHost(Host):
    """`generate` puts the images into embeddings, once."""

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor, images: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        inputs, mask, embeds, _ = self.prepare(inputs, attention_mask, None, images)
        given = {"inputs_embeds": self.model.embed_tokens(inputs) if embeds is None else embeds}
        if mask is not None:
            given["attention_mask"] = mask
        return super().generate(**given, **kwargs)


class OldHost(Host):
    """The stock `generate` hands the images to `forward` in every step."""

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, images: Any = None, **kwargs: Any) -> dict:
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        inputs.pop("position_ids", None)  # they count one position per image
        past = kwargs.get("past_key_values")
        if past is not None and (past.get_seq_length() if hasattr(past, "get_seq_length") else past):
            inputs["input_ids"] = input_ids[:, -1:]
        return {**inputs, "images": images}


def build(projector: str, host: type = NewHost, **settings: Any) -> Any:
    """A tiny model whose images change what it says."""
    torch.manual_seed(0)
    model = host(LlamaConfig(**SIZES))
    own = {"vlora": WEIGHTS, "acformer_vlora": TOKENS | WEIGHTS}.get(projector, TOKENS)
    args = SimpleNamespace(mm_projector_type=projector, **{**own, **settings})
    model.get_model().initialize_vision_modules(args)
    for name, parameter in model.model.mm_projector.named_parameters():
        if projector == "vlora" and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # as initialised, an image would hardly change a word
        elif "Bs" in name.split("."):
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def pixels(count: int) -> torch.Tensor:
    return 3 * torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
