"""Tiny models that take images as weights, on the vectors' tower (56 px, 4x4 patches, 4 heads)."""

from types import SimpleNamespace
from typing import Any

import torch

from llava.model import LlavaLlamaVLoRAForCausalLM, LlavaMistralConfig, LlavaMistralForCausalLM, LlavaVLoRAConfig

SMALL = {
    "vlora_dim": 16, "vlora_depth": 1, "vlora_heads": 2, "vlora_rank": 4, "vlora_alpha": 8, "vlora_type": "qkvom",
    "skip_layers": 1,
}  # fmt: skip
FLAGS = ["--mm_projector_type", "vlora", *(part for k, v in SMALL.items() for part in (f"--{k}", str(v)))]
PROMPTS = [[1, 300, -200, 13, 301, 302], [1, 305, 306], [1, -200, 310, 311, 312, 313, 314, 315]]
GREEDY = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}


def build(mistral: bool = False, kv_heads: int = 2, projector: str = "vlora", **settings: Any) -> Any:
    """A tiny model with random, non-zero perceptual weights."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 128,
    }  # fmt: skip
    config_class, model_class = (
        (LlavaMistralConfig, LlavaMistralForCausalLM) if mistral else (LlavaVLoRAConfig, LlavaLlamaVLoRAForCausalLM)
    )
    model = model_class(config_class(**sizes))
    args = SimpleNamespace(
        vision_tower="assets/towers/clip-a", mm_projector_type=projector, mm_vision_select_layer=-2,
        mm_vision_select_feature="patch", mm_patch_merge_type="flat", **(SMALL | settings),
    )  # fmt: skip
    model.get_model().initialize_vision_modules(args)
    for name, parameter in model.model.mm_projector.named_parameters():
        if "Bs" in name.split("."):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(1))


def pad(rows: list[list[int]], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row), 1
    return ids, mask


@torch.no_grad()
def logits(model: Any, rows: list[list[int]], images: torch.Tensor | None, side: str = "right") -> list[torch.Tensor]:
    """Per row, without padding."""
    ids, mask = pad(rows, side)
    out = model(ids, attention_mask=mask, images=images).logits
    return [row[keep.bool()] for row, keep in zip(out, mask, strict=True)]


def assert_cached_equals_uncached(model: Any) -> None:
    """Every generated token is the one that the whole row without a cache gives."""
    images, ids = random_images(1), torch.tensor(PROMPTS[:1])
    for expected in model.generate(ids, images=images, **GREEDY)[0].tolist():
        with torch.no_grad():
            step = model(ids, images=images, use_cache=False).logits[0, -1].argmax()
        assert step.item() == expected
        ids = torch.cat([ids, step.view(1, 1)], dim=1)
