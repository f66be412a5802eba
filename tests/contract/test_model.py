"""Splicing, logits, losses, gradients and generation against upstream's recordings (vectors/llava/model)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.llava_arch import unpad_image
from llava.model.multimodal_projector.builder import build_vision_projector
from tests.conftest import VECTORS

INDEX = json.loads((VECTORS / "llava/model/index.json").read_text())
CASES = {case["key"]: case for case in INDEX["cases"]}
OK_CASES = [key for key, case in CASES.items() if not case["error"]]
MERGED_CASES = [key for key in OK_CASES if not CASES[key]["returned_none"]["inputs_embeds"]]


@pytest.fixture(scope="module")
def arrays() -> tuple[Any, Any]:
    return np.load(VECTORS / "llava/model/inputs.npz"), np.load(VECTORS / "llava/model/outputs.npz")


_models: dict[str, tuple[Any, Any]] = {}


@pytest.fixture
def open_checkpoint(llava_vectors: Path):
    """Loads each checkpoint once; gives (tokenizer, model) with a fresh configuration."""

    def load(path: str, **overrides: Any) -> tuple[Any, Any]:
        if path not in _models:
            name = path.split("/")[-1]
            tokenizer, model, _, _ = load_pretrained_model(path, None, name, device="cpu", dtype=torch.float32)
            _models[path] = (tokenizer, model, model.config.to_dict())
        tokenizer, model, original = _models[path]
        for key in (
            "tokenizer_padding_side",
            "tokenizer_model_max_length",
            "mm_patch_merge_type",
            "image_aspect_ratio",
            "tune_mm_mlp_adapter",
            "mm_use_im_start_end",
        ):
            setattr(model.config, key, overrides.get(key, original.get(key)))
        model.zero_grad()
        model.requires_grad_(True)
        model.get_vision_tower().requires_grad_(False)
        return tokenizer, model

    return load


def _images(inputs: Any, key: str, case: dict[str, Any]) -> Any:
    """The `images` argument that the case's description names."""
    t = torch.from_numpy
    prefix = {
        "llava-v1-tiny-mlp2x": "mlp2x",
        "llava-v1-tiny-linear-imse": "linear",
        "llava-tiny-mistral": "mistral",
        "llava-v1.6-tiny-anyres-unpad": "anyres",
    }[case["checkpoint"].split("/")[-1]]
    description = case.get("images")
    if key == "anyres_5d_tensor":
        return t(inputs["anyres.pixel_values.one"])
    if key == "anyres_single_tile_unpad":
        return [t(inputs["anyres.pixel_values.one"])[0, 0]]
    if key in ("anyres_text_row", "spatial_but_not_anyres"):
        one = t(inputs["anyres.pixel_values.one"])
        return [one[0][:1], one[0]] if key == "anyres_text_row" else one
    if prefix == "anyres":
        return [t(inputs[f"anyres.pixel_values.{i}"]) for i in range(3)]
    pixels = t(inputs[f"{prefix}.pixel_values"])
    if key in ("single_token", "text_only_images_none"):
        return None
    if prefix == "linear":
        return torch.stack([pixels[0], torch.zeros_like(pixels[0]), pixels[1]])
    if prefix == "mistral":
        return pixels
    if "zeros" in (description or ""):
        stacked = torch.cat([torch.zeros_like(pixels[:1]), pixels[:3]])
        return list(stacked) if key == "mixed_list_images" else stacked
    if key == "too_many_images":
        return pixels[:3]
    return pixels[:1]


def _call(model: Any, inputs: Any, key: str, case: dict[str, Any]) -> tuple[Any, ...]:
    def get(name: str) -> torch.Tensor | None:
        full = f"{key}.{name}"
        return torch.from_numpy(inputs[full]) if full in inputs.files else None

    ids = get("input_ids")
    positions = None
    if not case.get("error") and not case["returned_none"]["position_ids"]:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
    return model.prepare_inputs_labels_for_multimodal(
        ids,
        positions,
        get("attention_mask_in"),
        None,
        get("labels_in"),
        _images(inputs, key, case),
        case["image_sizes"],
    )


@pytest.mark.parametrize("key", OK_CASES)
def test_splice_and_forward(key: str, arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    case, (inputs, outputs) = CASES[key], arrays
    if f"{key}.logits_lse" in inputs.files:  # one case has its outputs recorded beside its inputs
        outputs = inputs
    _, model = open_checkpoint(case["checkpoint"], **case["config_override"])
    ids, positions, mask, cache, embeds, labels = _call(model, inputs, key, case)

    returned = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": mask,
        "inputs_embeds": embeds,
        "labels": labels,
    }
    assert {name: value is None for name, value in returned.items()} == case["returned_none"]
    for name, dtype in case["dtypes"].items():
        assert (None if returned[name] is None else str(returned[name].dtype)) == dtype
    assert cache is None
    for name in ("attention_mask", "position_ids", "labels"):
        if f"{key}.{name}" in outputs.files and embeds is not None and returned[name] is not None:
            np.testing.assert_array_equal(returned[name].numpy(), outputs[f"{key}.{name}"])
    if embeds is not None:
        assert list(embeds.shape) == case["embeds_shape"]
        if f"{key}.inputs_embeds" in outputs.files:
            np.testing.assert_allclose(embeds.detach(), outputs[f"{key}.inputs_embeds"], rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_allclose(
                embeds.detach().double().sum(-1), outputs[f"{key}.inputs_embeds_sum"], rtol=1e-4, atol=1e-3
            )
            np.testing.assert_allclose(
                embeds.detach()[..., :8], outputs[f"{key}.inputs_embeds_first8"], rtol=1e-4, atol=1e-4
            )

    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, inputs_embeds=embeds, labels=labels)
    real = torch.ones(out.logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    checks = {
        "logits": out.logits,
        "logits_first16": out.logits[..., :16],
        "logits_lse": out.logits.logsumexp(-1),
    }
    checked = 0
    for name, value in checks.items():
        if f"{key}.{name}" in outputs.files:
            expected = torch.from_numpy(outputs[f"{key}.{name}"])
            torch.testing.assert_close(value.detach()[real], expected[real], rtol=0, atol=1e-3)
            checked += 1
    if f"{key}.logits_argmax" in outputs.files:
        expected = torch.from_numpy(outputs[f"{key}.logits_argmax"])
        assert (out.logits.argmax(-1)[real] == expected[real]).all()
        checked += 1
    assert checked, f"nothing was recorded for {key}"
    if case.get("loss") is not None:
        assert out.loss.item() == pytest.approx(case["loss"], abs=1e-4)
    if "grad_norm_mm_projector" in case:
        out.loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        expected = case["grad_norm_mm_projector"] | case["grad_norm_other"]
        for name, norm in expected.items():
            assert grads[name].norm().item() == pytest.approx(norm, rel=1e-3), name
        if "grad_norm_image_newline" in case:
            assert grads["model.image_newline"].norm().item() == pytest.approx(
                case["grad_norm_image_newline"], rel=1e-3
            )
        assert any("vision_tower" in name for name in grads) == case["vision_tower_has_grad"]


@pytest.mark.parametrize("key", [key for key in CASES if CASES[key]["error"]])
def test_refusals(key: str, arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    case = CASES[key]
    _, model = open_checkpoint(case["checkpoint"], **case["config_override"])
    expected = {"IndexError": IndexError, "ValueError": ValueError, "NotImplementedError": NotImplementedError}
    with pytest.raises(expected[case["error"]["type"]]):
        inputs = arrays[0]
        if f"{key}.input_ids" in inputs.files:
            _call(model, inputs, key, case)
        else:  # the refusal was recorded without its input: any prompt with one image meets it
            ids = torch.tensor([[1, -200, 13, -200, 13]]) if key == "too_few_images" else torch.tensor([[1, -200, 13]])
            model.prepare_inputs_labels_for_multimodal(
                ids, None, None, None, None, _images(inputs, key, case), case["image_sizes"]
            )


@pytest.mark.parametrize("name", ["mlp2x", "linear", "mistral", "anyres"])
def test_greedy_generation(name: str, arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    recorded = json.loads((VECTORS / f"llava/model/generate_{name}.json").read_text())
    inputs, _ = arrays
    tokenizer, model = open_checkpoint(recorded["checkpoint"])
    assert recorded["rows"]
    for row in recorded["rows"]:
        if row["error"]:
            continue
        if name == "anyres":
            image = Image.open(row["image_file"]).convert("RGB")
            images = process_images([image], model.get_vision_tower().image_processor, model.config)
            sizes = row["image_sizes"]
        else:
            pixels = torch.from_numpy(inputs[f"{name}.pixel_values"])
            index = row["image_index"]
            images, sizes = (None if index is None else pixels[index if isinstance(index, list) else [index]]), None
        new = model.generate(
            torch.tensor([row["input_ids"]]),
            images=images,
            image_sizes=sizes,
            do_sample=False,
            max_new_tokens=recorded["max_new_tokens"],
            pad_token_id=0,
            **row.get("kwargs", {}),
        )[0].tolist()
        assert new == row["new_ids"]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == row["text"].strip()


def test_batched_generation(arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    recorded, (inputs, _) = INDEX["batched_generate"], arrays
    _, model = open_checkpoint("checkpoints/llava-v1-tiny-mlp2x", tokenizer_padding_side="left")
    new = model.generate(
        torch.tensor(recorded["input_ids"]),
        attention_mask=torch.tensor(recorded["attention_mask"]),
        images=torch.from_numpy(inputs["mlp2x.pixel_values"])[:2],
        do_sample=False,
        max_new_tokens=recorded["max_new_tokens"],
        pad_token_id=recorded["pad_token_id"],
    )
    assert new.tolist() == [row[1:] for row in recorded["output_ids"]]


def test_generate_refuses_embeddings(open_checkpoint: Any) -> None:
    _, model = open_checkpoint("checkpoints/llava-v1-tiny-mlp2x")
    with pytest.raises(NotImplementedError):
        model.generate(torch.tensor([[1, 2]]), inputs_embeds=torch.zeros(1, 1, 64))


def test_tower_layers_and_features(arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    inputs, outputs = arrays
    _, model = open_checkpoint("checkpoints/llava-v1-tiny-mlp2x")
    tower = model.get_vision_tower()
    pixels = torch.from_numpy(inputs["mlp2x.pixel_values"])
    before = tower.select_layer, tower.select_feature
    names = [name for name in outputs.files if name.startswith("tower_a.layer")]
    assert names
    try:
        for name in names:
            layer, feature = name.removeprefix("tower_a.layer").split(".")
            tower.select_layer, tower.select_feature = int(layer), feature
            np.testing.assert_allclose(tower(pixels[:1]), outputs[name], rtol=1e-4, atol=1e-4)
        tower.select_feature = "bogus"
        with pytest.raises(ValueError, match="Unexpected select feature: bogus"):
            tower(pixels[:1])
    finally:
        tower.select_layer, tower.select_feature = before
    as_list = tower(list(pixels[: len(INDEX["tower_list_input"]["shapes"])]))
    assert [list(t.shape) for t in as_list] == INDEX["tower_list_input"]["shapes"]


def test_encode_images(arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    inputs, outputs = arrays
    paths = {"mlp2x": "llava-v1-tiny-mlp2x", "linear": "llava-v1-tiny-linear-imse", "mistral": "llava-tiny-mistral"}
    names = [n for n in outputs.files if n.endswith(".encode_images") and not n.startswith("projector.")]
    assert names
    for name in names:
        key = name.removesuffix(".encode_images")
        if key not in paths:
            continue
        _, model = open_checkpoint(f"checkpoints/{paths[key]}")
        pixels = torch.from_numpy(inputs[f"{key}.pixel_values"])[: len(outputs[name])]
        np.testing.assert_allclose(model.encode_images(pixels).detach(), outputs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu", "identity"])
def test_projectors(kind: str, arrays: tuple[Any, Any], open_checkpoint: Any) -> None:
    inputs, outputs = arrays
    _, model = open_checkpoint("checkpoints/llava-v1-tiny-mlp2x")
    config = type("Config", (), {"mm_projector_type": kind, "mm_hidden_size": 64, "hidden_size": 64})()
    projector = build_vision_projector(config)
    recorded = INDEX["projectors"][kind]
    assert {k: list(v.shape) for k, v in projector.state_dict().items()} == recorded["state_dict"]
    assert repr(projector) == recorded["repr"]
    if kind != "identity":
        projector.load_state_dict(load_file(VECTORS / f"llava/model/projectors/{kind}.safetensors"))
    original = model.model.mm_projector
    model.model.mm_projector = projector
    try:
        pixels = torch.from_numpy(inputs["mlp2x.pixel_values"])[:1]
        if f"projector.{kind}.encode_images" in outputs.files:
            expected = outputs[f"projector.{kind}.encode_images"]
            got = model.encode_images(torch.from_numpy(inputs["mlp2x.pixel_values"])[: len(expected)])
            np.testing.assert_allclose(got.detach(), expected, rtol=1e-4, atol=1e-4)
        logits = model(torch.from_numpy(inputs["single_image.input_ids"]), images=pixels).logits
        np.testing.assert_allclose(
            logits[:, -1].detach().squeeze(), outputs[f"projector.{kind}.logits_last"].squeeze(), rtol=0, atol=1e-3
        )
    finally:
        model.model.mm_projector = original


def test_unknown_projectors_and_default() -> None:
    base = {"mm_hidden_size": 4, "hidden_size": 6}
    for kind in INDEX["projectors"]["bad"]:
        with pytest.raises(ValueError, match=f"Unknown projector type: {kind}"):
            build_vision_projector(type("Config", (), {**base, "mm_projector_type": kind})())
    assert repr(build_vision_projector(type("Config", (), base)())) == INDEX["projectors"]["default"]
    assert isinstance(build_vision_projector(type("Config", (), base)()), nn.Linear)


@pytest.mark.parametrize("path", list(INDEX["checkpoints"]))
def test_checkpoint_facts(path: str, open_checkpoint: Any) -> None:
    facts = INDEX["checkpoints"][path]
    tokenizer, model = open_checkpoint(path)
    tower = model.get_vision_tower()
    assert type(model).__name__ == facts["model_class"]
    assert len(tokenizer) == facts["len_tokenizer"]
    assert model.config.vocab_size == facts["vocab_size"]
    assert tower.is_loaded == facts["tower_loaded"]
    assert (tower.num_patches, tower.num_patches_per_side, tower.hidden_size) == (
        facts["num_patches"],
        facts["num_patches_per_side"],
        facts["hidden_size"],
    )
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == facts["state_dict"]


def test_unpad_image() -> None:
    for case in json.loads((VECTORS / "llava/model/unpad_image.json").read_text()):
        h, w = case["h"], case["w"]
        out = unpad_image(torch.arange(h * w).view(1, h, w), tuple(case["original_size"]))
        assert list(out.shape) == case["out_shape"]
        flat = out.flatten().tolist()
        assert ((flat[0], flat[-1]) if flat else (None, None)) == (case["first"], case["last"])
