"""Anchor selection, tower and resampler against the recordings of the published AcFormer (vectors/acformer)."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.acformer import AcFormer, AcFormerConfig
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.published_keys import settings_of_published
from llava.model.multimodal_projector.token_reducer import TokenReducer
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.model.multimodal_projector.visual_anchors import select_visual_anchors
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
    expected = {key: norm for key, norm in facts.get("grad_norms", {}).items() if key[0] != "<" and norm}
    assert expected or "grad_norms" not in facts
    gradients = published_gradients(connector)
    for key, norm in expected.items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-4), key


def published_gradients(connector: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients under the published names; only what concerns the image is stored together here."""
    gradients = {}
    for name, parameter in connector.named_parameters():
        if name.startswith("resampler.media."):
            part = {"norm_weight": "norm_media.weight", "norm_bias": "norm_media.bias", "to_kv": "to_kv.weight"}
            for i, gradient in enumerate(parameter.grad):
                gradients[f"0.layers.{i}.0.{part[name.rsplit('.', 1)[1]]}"] = gradient
        elif name.startswith("mlp."):
            _, index, kind = name.split(".")
            gradients[f"{int(index) + 1}.{kind}"] = parameter.grad
        elif name.startswith("resampler.norm."):
            gradients[name.replace("resampler.", "0.")] = parameter.grad
        else:
            _, _, layer, rest = name.split(".", 3)
            inner = f"1.{rest.removeprefix('feed_forward.')}" if rest.startswith("feed_forward") else f"0.{rest}"
            gradients[f"0.layers.{layer}.{inner}"] = parameter.grad
    return gradients


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
    """The 73 entries of the 7B connector all find a place in ours, with the right shapes."""
    recorded = json.loads((ROOT / "official_keys_vicuna7b.json").read_text())
    published = {k.removeprefix("model.mm_projector."): torch.empty(v, device="meta") for k, v in recorded.items()}
    settings = settings_of_published(published)
    assert settings["mm_projector_type"] == "acformer"
    config = SimpleNamespace(mm_hidden_size=1024, hidden_size=4096, **settings)
    with torch.device("meta"):
        connector = build_vision_projector(config)
        perceiver = build_vision_projector(
            SimpleNamespace(**(vars(config) | {"mm_projector_type": "pr", "mm_num_visual_tokens": 144}))
        )
    for module in (connector, perceiver):
        module.load_state_dict(module.load_published_state(published), strict=True, assign=True)


FAMILY = sorted(k for k in cases("resampler.safetensors") if k.startswith(("pooling", "top_p", "random", "pr_")))


@pytest.mark.parametrize("case", FAMILY)
def test_family(case: str) -> None:
    """The ablation connectors whole: features in, visual tokens out."""
    all_cases = cases("resampler.safetensors")
    recorded, tokens = all_cases[case], int(case.rsplit("_", 1)[1])
    tower = cases("tower.safetensors")[f"grid24_{tokens}"]
    name = {"pr_learnable": "perceiver"}.get(case.rsplit("_", 1)[0], case.rsplit("_", 1)[0])
    shared = META["resampler"]["grid24_65"]
    weights = weights_of(recorded, all_cases)
    if name == "perceiver":
        weights["0.latents"] = recorded["query"][0]
    config = SimpleNamespace(
        mm_projector_type=name,
        mm_num_visual_tokens=tokens,
        mm_hidden_size=shared["dim"],
        hidden_size=shared["out_dim"],
        mm_resampler_depth=shared["depth"],
        mm_resampler_heads=shared["heads"],
        mm_resampler_dim_head=shared["dim_head"],
    )
    connector = build_vision_projector(config).eval()
    if isinstance(connector, TokenReducer):
        mlp = {k: v for k, v in weights.items() if k[0] in "13"}
        connector.mlp.load_state_dict({f"{int(k[0]) - 1}{k[1:]}": v for k, v in mlp.items()})
    else:
        connector.load_state_dict(connector.load_published_state(weights), strict=True)
    features = VisionFeatures(tower["features"], tower["cls_attention"][..., 1:])
    if isinstance(connector, TokenReducer):
        assert_close(connector.reduce(features, tokens), recorded["query"])
    elif name != "random_pr":
        assert_close(connector.queries(features.hidden, features, tokens), recorded["query"])
    else:  # the draw is ours; what is made of a draw is recorded
        assert_close(connector.mlp(connector.resampler(recorded["query"], features.hidden)), recorded["output"])
        return
    assert_close(connector(features), recorded["output"])


@pytest.mark.parametrize("case", META["cabstractor"])
def test_c_abstractor(case: str) -> None:
    recorded, facts = cases("cabstractor.safetensors")[case], META["cabstractor"][case]
    weights = {k.removeprefix("mm_projector."): v for k, v in recorded.items() if k.startswith("mm_projector.")}
    settings = settings_of_published(weights)
    assert (settings["mm_projector_type"], settings["mm_abstractor_depth"]) == ("c_abstractor", facts["depth"])
    config = SimpleNamespace(mm_hidden_size=facts["dim"], hidden_size=facts["dim"], **settings)
    config.mm_num_visual_tokens = facts["tokens"]
    config.mm_projector_mlp = "mlp2x_gelu"  # the recording stops before the MLP
    connector = build_vision_projector(config)
    loaded = connector.load_state_dict(connector.load_published_state(weights), strict=False)
    assert not loaded.unexpected_keys and all(key.startswith("mlp.") for key in loaded.missing_keys)
    hidden = recorded["features"].clone().requires_grad_(True)
    output = connector.abstract(VisionFeatures(hidden), facts["tokens"])
    assert_close(output, recorded["output"])
    (output * recorded["probe"]).sum().backward()
    assert_close(hidden.grad, recorded["grad_features"])
    named = {key: torch.zeros(()) for key in facts["grad_norms"] if key[0] != "<"}
    places = connector.load_published_state({f"0.{key}": torch.tensor(i) for i, key in enumerate(named)})
    for place, number in places.items():
        key = list(named)[int(number)]
        gradient = connector.get_parameter(place).grad
        assert gradient.norm().item() == pytest.approx(facts["grad_norms"][key], rel=1e-4), key
