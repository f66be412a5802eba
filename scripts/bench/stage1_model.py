"""The models of the benchmarks: geometries, a LLaVA with random frozen weights, and a connector for it."""

import copy
from dataclasses import dataclass

import torch
from common import TOY_VISION, clip_folder, random_clip
from transformers.models.clip import CLIPImageProcessorPil

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.clip_encoder import ClipBackbone
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.registry import Connector, find_connector
from llava.tools.cost import LLMS
from llava.tools.flops import CLIP_L_336, GENERATOR, RESAMPLER, GeneratorShape, LLMShape, ResamplerShape, VisionShape


@dataclass(frozen=True)
class Geometry:
    """Sizes of the parts of a model."""

    llm: LLMShape
    vision: VisionShape = CLIP_L_336
    resampler: ResamplerShape = RESAMPLER
    generator: GeneratorShape = GENERATOR
    generator_heads: int = 16


GEOMETRIES = {
    "7b": Geometry(LLMS["7b"]),
    "13b": Geometry(LLMS["13b"]),
    "small": Geometry(
        LLMShape(1024, 16, 2752, 4096, heads=16, kv_heads=16, head_dim=64),
        VisionShape(width=256, blocks=12),
        ResamplerShape(heads=4, dim_head=32),
        # Its share of a prefill, 3 %, and that of the low-rank paths, 0.3 % of the language model, are those of 7B.
        GeneratorShape(width=112, rank=16),
        generator_heads=4,
    ),
    # About 60 M parameters of language model, what two CPU cores can serve; CLIP-L/336's 576 patches.
    "serving": Geometry(
        LLMShape(768, 8, 2048, 551, heads=12, kv_heads=12, head_dim=64),
        VisionShape(width=256, blocks=6),
        ResamplerShape(depth=2, heads=4, dim_head=32),
        GeneratorShape(width=112, rank=16),
        generator_heads=4,
    ),
    # Wide enough that matrix products dominate, as at 7B, and small enough for steps of 16 long conversations on a CPU.
    "packing": Geometry(
        LLMShape(256, 2, 688, 256, heads=4, kv_heads=4, head_dim=64),
        VisionShape(width=64, blocks=2, heads=4),
        ResamplerShape(depth=1, heads=2, dim_head=32),
        GeneratorShape(width=32, depth=1, rank=8, skip=1),
        generator_heads=2,
    ),
    "toy": Geometry(
        LLMShape(64, 2, 128, 128, heads=4, kv_heads=4, head_dim=16),
        TOY_VISION,
        ResamplerShape(depth=2, dim_head=8),
        GeneratorShape(width=16, depth=2, rank=4, skip=1),
        generator_heads=2,
    ),
}


def build_model(geometry: Geometry, device: str, dtype: torch.dtype, attention: str) -> LlavaLlamaForCausalLM:
    """LLaVA with random frozen weights, recomputation on, and no connector worth the name yet."""
    llm, resampler, generator = geometry.llm, geometry.resampler, geometry.generator
    with clip_folder(geometry.vision) as folder, torch.device(device):
        config = LlavaConfig(
            hidden_size=llm.hidden_size,
            num_hidden_layers=llm.layers,
            intermediate_size=llm.intermediate_size,
            vocab_size=llm.vocab_size,
            num_attention_heads=llm.heads,
            num_key_value_heads=llm.kv_heads,
            head_dim=llm.head_dim,
            use_cache=False,
            mm_vision_tower=folder,
            mm_projector_type="identity",
            mm_hidden_size=geometry.vision.width,
            mm_vision_select_layer=-2,
            mm_resampler_depth=resampler.depth,
            mm_resampler_heads=resampler.heads,
            mm_resampler_dim_head=resampler.dim_head,
            mm_resampler_ff_mult=resampler.ff_mult,
            vlora_dim=generator.width,
            vlora_depth=generator.depth,
            vlora_heads=geometry.generator_heads,
            vlora_ratio=generator.ratio,
            vlora_rank=generator.rank,
            vlora_type=generator.letters,
            weights_sep=generator.is_separate,
            skip_layers=generator.skip,
        )
        model = LlavaLlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype)
    tower = model.get_vision_tower()
    tower.vision_tower = ClipBackbone(random_clip(geometry.vision, attention, device, dtype))
    tower.image_processor, tower.is_loaded = CLIPImageProcessorPil(), True
    model.requires_grad_(False).train()
    # transformers 5.23 renamed it.
    recompute = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    recompute({"use_reentrant": False})
    return model


def build_connector(model: LlavaLlamaForCausalLM, name: str, tokens: int, dtype: torch.dtype) -> Connector:
    """The connector `name`, asked for `tokens` visual tokens where it gives any.

    In a generator of weights nothing stays the 0 or 1 that training starts with, which would make it do nothing.

    Raises:
        ValueError: it cannot give that many.
    """
    config, tower = copy.deepcopy(model.config), model.get_vision_tower()
    config.mm_projector_type, config.mm_num_visual_tokens = name, tokens
    find_connector(name).connector_class.derive_settings(config, tower)
    with torch.device(model.device):
        connector = build_vision_projector(config).to(dtype).train()
    connector.check_tower(tower.config.num_attention_heads, tower.num_patches)
    if connector.space != "input":
        with torch.no_grad():
            for parameter in connector.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return connector
