"""Whole training steps on the meta device, at the size of CLIP-L/336 and Vicuna-7B.

Meta tensors have shapes and dtypes but no values. Whatever reads a value back from the device, mixes devices or makes a
wrong shape fails here, as it would stall or fail on a GPU.
"""

from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.anyres import CropLayout
from llava.model.multimodal_projector.builder import known_projector_types
from llava.model.planned_attention import PLANNED_SDPA
from llava.train.planning import BatchLayout, PlanningCollator

VICUNA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
TOWER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    "projection_dim": 768,
}  # fmt: skip
VLORA = {
    "vlora_depth": 8, "vlora_rank": 64, "vlora_type": "qkvom", "skip_layers": 4, "vlora_pos_num": 576,
    "vlora_alpha": 64,
}  # fmt: skip
TOKENS = {"pixel_shuffle": 144, "c_abstractor": 144}
CONNECTORS = [name.replace("<k>", "2") for name in known_projector_types() if name != "identity"]
ROWS = [[1, 29871, -200, 13] + [300] * 60, [1] + [301] * 500, [1, -200] + [302] * 33]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """CLIP-L/336 by its number of layers."""
    folders = {}
    for layers in (4, 24):
        folder = folders[layers] = str(tmp_path_factory.mktemp("clip-l-336"))
        CLIPVisionConfig(**TOWER | {"num_hidden_layers": layers}).save_pretrained(folder)
        size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
        CLIPImageProcessor(**size).save_pretrained(folder)
    return folders


def build(name: str, towers: dict[int, str], is_whole: bool = False) -> Any:
    """The model without any memory: all layers, or 4 of the decoder and of the tower, since layers are alike."""
    vision = {
        "mm_vision_tower": towers[24 if is_whole else 4],
        "unfreeze_mm_vision_tower": True,  # has the tower built with the model
        "mm_projector_type": name,
        "mm_hidden_size": 1024,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_num_visual_tokens": TOKENS.get(name, 145),
    }
    config = LlavaConfig(**VICUNA | {"num_hidden_layers": 32 if is_whole else 4}, **vision, **VLORA)
    config._attn_implementation = PLANNED_SDPA
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(config).to(torch.bfloat16)
    model.get_vision_tower().requires_grad_(False)
    return model.train()


def samples(crops: int | None = None) -> list[dict[str, Any]]:
    shape = (3, 336, 336) if crops is None else (crops, 3, 336, 336)
    rows = [torch.tensor(row) for row in ROWS]
    items = [{"input_ids": row, "labels": row, "image": torch.zeros(shape, dtype=torch.uint8)} for row in rows]
    return items if crops is None else [item | {"image_size": (600, 600)} for item in items]


def meta_batch(model: Any, items: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    layout = BatchLayout(model.space, model.num_visual_tokens, 2048, **options)
    batch = PlanningCollator(layout)(items)
    images = batch.pop("images")
    on_device = [image.to("meta") for image in images] if isinstance(images, list) else images.to("meta")
    return {**batch, "plan": batch["plan"].to("meta"), "images": on_device}


def run_step(model: Any, batch: dict[str, Any]) -> None:
    loss = model(**batch).loss
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    unused = [name for name, p in trained.items() if p.grad is None]
    assert trained and not unused
    assert all(p.grad.shape == p.shape and p.grad.dtype == p.dtype for p in trained.values())
    model.zero_grad()


def train_stage1(model: Any) -> None:
    model.requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)


def train_stage2(model: Any) -> None:
    model.requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    model.gradient_checkpointing_enable()


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_step_reads_nothing_back(name: str, towers: dict[int, str]) -> None:
    """Padded and packed, both stages; a batch of text only trains the connector with weight 0."""
    model = build(name, towers)
    packed = {"packed": True, "chunked_loss": True}
    train_stage1(model)
    run_step(model, meta_batch(model, samples()))
    run_step(model, meta_batch(model, samples()[1:2], **packed))
    train_stage2(model)
    run_step(model, meta_batch(model, samples(), **packed, loss_average="sample"))


def test_all_layers(towers: dict[int, str]) -> None:
    """The connector that makes tokens and weights, with 32 layers in the decoder and 24 in the tower."""
    model = build("acformer_vlora", towers, is_whole=True)
    train_stage2(model)
    assert sum(p.numel() for p in model.parameters()) > 7e9
    run_step(model, meta_batch(model, samples(), packed=True, chunked_loss=True))


@pytest.mark.parametrize("merge", ["flat", "spatial_unpad"])
def test_crops(merge: str, towers: dict[int, str]) -> None:
    """Anyres: the host counts the tokens that merging makes."""
    model = build("mlp2x_gelu", towers)
    config = model.config
    config.mm_patch_merge_type, config.image_aspect_ratio = merge, "anyres"
    config.image_grid_pinpoints = [[336, 672], [672, 672]]
    if merge == "spatial_unpad":
        model.model.image_newline = torch.nn.Parameter(torch.empty(4096, device="meta", dtype=torch.bfloat16))
    items = samples(crops=5)
    items[2] |= {"image": items[2]["image"][:3], "image_size": (300, 620)}
    crops = CropLayout.of_config(config, model.get_vision_tower())
    run_step(model, meta_batch(model, items, packed=True, chunked_loss=True, crops=crops))
