"""Anchor selection, tower and resampler against the recordings of the published AcFormer (vectors/acformer)."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.acformer import AcFormer, AcFormerConfig
from llava.model.vision_features import VisionFeatures
from llava.model.visual_anchors import select_visual_anchors
from tests.conftest import VECTORS

ROOT = VECTORS / "acformer"
META = json.loads((ROOT / "meta.json").read_text())
TOLERANCE = 1e-5  # max abs difference / max abs value
RESAMPLER_ONLY = {"pooling_pr_65", "pooling_pr_145", "pr_learnable_65", "random_pr_65"}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def cases(file: str) -> dict[str, dict[str, torch.Tensor]]:
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(ROOT / file).items():
        case, name = key.split("/", 1)
        grouped.setdefault(case, {})[name] = value
    return grouped


@pytest.mark.parametrize("case", META["selection"])
def test_selection(case: str) -> None:
    recorded, facts = cases("selection.safetensors")[case], META["selection"][case]
    indices = select_visual_anchors(recorded["cls_attention"][..., 1:], facts["num_count"])
    assert indices.dtype == torch.int64
    assert indices.shape[1] == facts["tokens"]
    assert torch.equal(indices, recorded["indices"].long())


@pytest.mark.parametrize("case", META["tower"])
def test_tower_and_selection(case: str, tmp_path) -> None:
    all_cases, facts = cases("tower.safetensors"), META["tower"][case]
    recorded = all_cases[case]
    weights = recorded if any(k.startswith("clip.") for k in recorded) else all_cases["grid24_65"]
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"]
    clip = CLIPVisionModel(CLIPVisionConfig(**{k: facts[k] for k in [*keys, "hidden_act", "layer_norm_eps"]}))
    state = {k.removeprefix("clip.").removeprefix("vision_model."): v for k, v in weights.items() if k[:5] == "clip."}
    clip.load_state_dict(state, strict=True)
    clip.save_pretrained(tmp_path)
    size = facts["image_size"]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": size})
    )

    tower = CLIPVisionTower(str(tmp_path), SimpleNamespace(mm_vision_select_layer=-2))
    features = tower.encode(recorded["pixel_values"], need_cls_attention=True)
    assert_close(features.hidden, recorded["features"])
    assert_close(features.cls_attention, recorded["cls_attention"][..., 1:])
    indices = select_visual_anchors(features.cls_attention, facts["num_count"])
    assert torch.equal(indices, recorded["indices"].long())
    query = features.hidden.gather(1, indices[..., None].expand(-1, -1, features.hidden.shape[-1]))
    assert_close(query, recorded["query"])
    assert torch.equal(tower(recorded["pixel_values"]), features.hidden[:, 1:])


@pytest.mark.parametrize("case", META["resampler"])
def test_resampler(case: str) -> None:
    all_cases, towers, facts = cases("resampler.safetensors"), cases("tower.safetensors"), META["resampler"][case]
    recorded = all_cases[case]
    source = "tiny_b1" if case.startswith("tiny") else "grid24_65"
    weights = {
        k.removeprefix("mm_projector."): v for k, v in all_cases[source].items() if k.startswith("mm_projector.")
    }
    # Some cases come with projector weights of their own beside the shared ones (learnable latents).
    tower = towers.get(case) or towers[f"grid24_{case.rsplit('_', 1)[1]}"] if case[:4] != "tiny" else {}
    features = recorded.get("features", tower.get("features")).clone().requires_grad_(True)
    if "query" in recorded:
        query = recorded["query"]
    elif case == "pr_learnable_65":
        query = weights_of(recorded, all_cases)["0.latents"].expand(len(features), -1, -1)
    elif "indices" in recorded:
        indices = recorded["indices"].long()
        if indices.shape[1] < facts["n_query"]:
            indices = torch.cat([indices.new_zeros(len(indices), 1), indices], dim=1)
        query = features.detach().gather(1, indices[..., None].expand(-1, -1, features.shape[-1]))
    else:
        query = tower["query"]
    query = query.clone().requires_grad_(True)

    connector = connector_for(facts)
    connector.load_state_dict(connector.load_published_state(weights), strict=True)
    resampled = connector.resampler(query, features)
    output = connector.mlp(resampled)
    assert_close(resampled, recorded["resampled"])
    assert_close(output, recorded["output"])
    (output * recorded["probe"]).sum().backward()
    if "grad_query" in recorded:
        assert_close(query.grad, recorded["grad_query"])
    if "grad_features" in recorded:
        assert_close(features.grad, recorded["grad_features"])
    norms = connector.load_published_state(
        {k.removeprefix("mm_projector."): v for k, v in facts.get("grad_norms", {}).items() if k[0] != "<" and v}
    )
    for name, parameter in connector.named_parameters():
        if name in norms:
            assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=1e-4), name
    assert norms or "grad_norms" not in facts


def weights_of(recorded: dict, all_cases: dict) -> dict[str, torch.Tensor]:
    own = {k.removeprefix("mm_projector."): v for k, v in recorded.items() if k.startswith("mm_projector.")}
    shared = {k.removeprefix("mm_projector."): v for k, v in all_cases["grid24_65"].items() if "mm_projector." in k}
    return shared | own


def connector_for(facts: dict) -> AcFormer:
    settings = AcFormerConfig(
        mm_num_visual_tokens=facts["n_query"],
        mm_resampler_depth=facts["depth"],
        mm_resampler_heads=facts["heads"],
        mm_resampler_dim_head=facts["dim_head"],
        mm_resampler_ff_mult=facts["ff_mult"],
    )
    return AcFormer(settings, vision_width=facts["dim"], llm_width=facts["out_dim"])


@pytest.mark.parametrize("case", [c for c in META["resampler"] if c not in RESAMPLER_ONLY and c.startswith("grid24")])
def test_whole_connector(case: str) -> None:
    """Features and attention in, visual tokens out: selection, resampler and MLP together."""
    recorded, tower = cases("resampler.safetensors"), cases("tower.safetensors")[case]
    connector = connector_for(META["resampler"][case])
    weights = {k.removeprefix("mm_projector."): v for k, v in recorded["grid24_65"].items() if "mm_projector." in k}
    connector.load_state_dict(connector.load_published_state(weights), strict=True)
    features = VisionFeatures(tower["features"], tower["cls_attention"][..., 1:])
    assert_close(connector(features), recorded[case]["output"])


def test_every_published_key_has_a_place() -> None:
    """The 73 entries of the 7B connector map one to one onto ours, with equal shapes."""
    recorded = json.loads((ROOT / "official_keys_vicuna7b.json").read_text())
    shapes = {k.removeprefix("model.mm_projector."): tuple(v) for k, v in recorded.items()}
    with torch.device("meta"):
        connector = AcFormer(AcFormerConfig(), vision_width=1024, llm_width=4096)
    mapped = connector.load_published_state(shapes)
    assert mapped == {k: tuple(v.shape) for k, v in connector.state_dict().items()}
