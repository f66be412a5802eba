"""VLoRA against the recordings of the published program (vectors/vlora)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava.model.families import classes_of, read_config
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.perceptual_weights import LETTERS
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.model.multimodal_projector.vlora import DecoderShape, VLoRA, VLoRAConfig
from llava.model.splice import LanguageInputs
from tests.conftest import VECTORS

ROOT = VECTORS / "vlora"
META = json.loads((ROOT / "meta.json").read_text())
CASES = {name: facts for name, facts in META["generator"]["cases"].items() if "args" in facts}
TOLERANCE = 2e-5  # max abs difference / max abs value


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


def under(file: str, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in load_file(ROOT / file).items() if k.startswith(prefix)}


def generator(args: dict[str, Any]) -> VLoRA:
    widths = dict.fromkeys(LETTERS, args["vlora_llm_dim"])
    shape = DecoderShape(widths, widths, args["vlora_llm_depth"])
    return VLoRA(VLoRAConfig(**args), args["vlora_visual_dim"], args["vlora_pos_num"], shape)


@pytest.mark.parametrize("case", CASES)
def test_generator(case: str) -> None:
    recorded, facts = under("generator.safetensors", f"{case}/"), CASES[case]
    module = generator(facts["args"])
    prefix = "mm_projector."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)})
    features = recorded["features"].clone().requires_grad_(True)
    class_token = features.new_zeros(len(features), 1, features.shape[-1])
    weights = module(VisionFeatures(torch.cat([class_token, features], dim=1)))
    loss = torch.zeros(())
    for layer, letters in enumerate(facts["types_per_layer"]):
        factors = weights.of_layer(layer)
        assert set(factors) == set(letters)
        for letter, (a, b) in factors.items():
            assert_close(a, recorded[f"layer{layer}.{letter}.A"])
            assert_close(b, recorded[f"layer{layer}.{letter}.B"][0])
            seed = facts["S"] + 10 * layer + LETTERS.index(letter)
            loss = loss + (a * noise(a.shape, seed + 1000)).sum() + (b * noise((1, *b.shape), seed + 5000)[0]).sum()
    loss.backward()
    assert_close(features.grad, recorded["grad_features"])
    for name, parameter in module.named_parameters():
        expected = facts["grad_norms"].get(name)
        if expected is not None:
            assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-4), name


def noise(shape: Any, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_initialisation() -> None:
    """Every statistic that was recorded of a fresh published generator: mean and standard deviation by name."""
    recorded = META["generator"]["init_statistics"]
    sizes = {name: json.loads(text.split("shape ")[1].split(" mean")[0]) for name, text in recorded.items()}
    depth = 1 + max(int(name.split(".")[3]) for name in sizes if ".decoders." in name)
    stacks = 1 + max(int(name.split(".")[1]) for name in sizes if name.startswith("gen."))
    width, groups = sizes["pos_embed"][2], sizes["gen.0.queries"][1]
    rank = 4
    dim = sizes["Bs"][2] // rank
    args = {
        "vlora_dim": width, "vlora_depth": depth, "vlora_rank": rank, "vlora_type": "qkvom"[:stacks],
        "vlora_llm_dim": dim, "vlora_llm_depth": sizes["Bs"][1] // stacks, "vlora_pos_num": sizes["pos_embed"][1],
        "vlora_visual_dim": sizes["visual_proj.weight"][1],
    }  # fmt: skip
    assert groups == args["vlora_llm_depth"]
    torch.manual_seed(0)
    module = generator(args)
    module.reset_parameters()  # as after loading a checkpoint without a connector
    state = module.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == sizes
    for name, text in recorded.items():
        mean, std = float(text.split("mean ")[1].split()[0]), float(text.split("std ")[1].split()[0])
        value = state[name]
        error = 6 * std / math.sqrt(value.numel())
        assert value.mean().item() == pytest.approx(mean, abs=2 * error + 1e-6), name
        assert value.std(correction=0).item() == pytest.approx(std, abs=error + 1e-4), name


@pytest.fixture
def model() -> Any:
    return load_pretrained_checkpoint()


def load_pretrained_checkpoint(**options: Any) -> Any:
    path = str(ROOT / "checkpoint")
    model_class, config_class = classes_of("vlora", path)
    config = read_config(config_class, path)
    config.mm_vision_tower = str(ROOT / "checkpoint" / config.mm_vision_tower)
    loaded = model_class.from_pretrained(path, config=config, dtype=torch.float32, **options)
    loaded.get_vision_tower().load_model()
    return loaded.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batch(attention: str) -> None:
    """Image in the middle, text only, image right after BOS, short text only; right padded."""
    model, recorded = load_pretrained_checkpoint(attn_implementation=attention), under("model.safetensors", "batch/")
    mask = recorded["attention_mask"]
    before = {name: value.clone() for name, value in recorded.items()}
    assert_close(model.get_vision_tower()(recorded["images"]), recorded["image_features"])
    model.requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    out = model(
        recorded["input_ids"],
        attention_mask=mask,
        labels=recorded["labels"],
        images=recorded["images"],
        output_hidden_states=True,
    )
    assert_close(out.logits * mask.unsqueeze(-1), recorded["logits"])
    assert_close(out.hidden_states[-1] * mask.unsqueeze(-1), recorded["last_hidden"])
    assert out.loss.item() == pytest.approx(META["model"]["batch"]["loss"], rel=1e-5)
    assert all(torch.equal(before[name], recorded[name]) for name in before), "the caller's tensors are his"
    out.loss.backward()
    for name, expected in META["model"]["batch"]["grad_norms"].items():
        if expected is not None:
            assert model.get_parameter(name).grad.norm().item() == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("recompute", [False, True])
def test_stage1_layout(model: Any, recompute: bool) -> None:
    """BOS, slot, caption: the first word is predicted from the slot's own row; also with recomputation."""
    recorded = under("model.safetensors", "plain/")
    mask = recorded["attention_mask"].unsqueeze(-1)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    out = model(**{name: value for name, value in recorded.items() if name != "logits"})
    assert_close(out.logits * mask, recorded["logits"] * mask)
    assert out.loss.item() == pytest.approx(META["model"]["plain"]["loss"], rel=1e-5)
    out.loss.backward()
    for name, expected in META["model"]["plain"]["grad_norms"].items():
        if expected:
            assert model.get_parameter(name).grad.norm().item() == pytest.approx(expected, rel=1e-3), name


def test_weights_of_the_first_weighted_layer(model: Any) -> None:
    batch, recorded = under("model.safetensors", "batch/"), under("model.safetensors", "weights/")
    bound = model.assemble_inputs(
        LanguageInputs(batch["input_ids"], batch["attention_mask"]), ImageInputs(batch["images"])
    )
    for letter, (a, b) in bound.weights.of_layer(3).items():
        whole = a.new_zeros(4, *a.shape[1:])
        whole[bound.weights.rows] = a
        assert_close(whole, recorded[f"layer3.{letter}.A"])
        assert_close(b, recorded[f"layer3.{letter}.B"][0])


@pytest.mark.parametrize("case", ["single", "single_after_bos", "pair_image_text"])
def test_generation(model: Any, case: str) -> None:
    recorded = under("model.safetensors", f"generate/{case}/")
    expected = recorded["consistent_new_tokens"]
    out = model.generate(
        recorded["input_ids"], images=recorded["images"], do_sample=False, max_new_tokens=expected.shape[1],
        pad_token_id=0, eos_token_id=-1, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(out.sequences, expected)
    assert_close(torch.stack(out.logits, dim=1), recorded["consistent_step_logits"])


def test_one_cached_step(model: Any) -> None:
    prompt, recorded = under("model.safetensors", "generate/single/"), under("model.safetensors", "decode_step/")
    with torch.no_grad():
        first = model(prompt["input_ids"], images=prompt["images"], use_cache=True)
        assert_close(first.logits, recorded["prefill_logits"])
        bound = model.assemble_inputs(LanguageInputs(prompt["input_ids"]), ImageInputs(prompt["images"]))
        mask = torch.cat([bound.attention_mask, torch.ones(1, 1, dtype=torch.bool)], dim=1)
        step = model(
            recorded["next_token"], attention_mask=mask, past_key_values=first.past_key_values,
            position_ids=torch.tensor([[prompt["input_ids"].shape[1]]]), perceptual_weights=bound.weights,
        )  # fmt: skip
    assert_close(step.logits[:, -1], recorded["consistent_logits"])


def test_published_layout_both_ways(model: Any, tmp_path: Path) -> None:
    """Saved again, the checkpoint has the published names, shapes, architecture and model type."""
    recorded = {
        name: tuple(shape)
        for name, shape in json.loads((ROOT / "checkpoint_keys.json").read_text()).items()
        if "rotary_emb" not in name
    }
    model.save_pretrained(tmp_path)
    saved = {name: tuple(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()}
    assert saved == recorded
    config = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((ROOT / "checkpoint/config.json").read_text())
    for key in published.keys() - {"transformers_version", "mm_vision_tower"}:
        assert config[key] == published[key], key


@pytest.mark.parametrize("case", ["single", "single_after_bos", "pair_image_text"])
def test_published_decode_positions(model: Any, case: str) -> None:
    """The published program decodes rows with an image one position too early; for comparing with its weights."""
    recorded = under("model.safetensors", f"generate/{case}/")
    expected = recorded["official_sequences"]
    out = model.generate(
        recorded["input_ids"], images=recorded["images"], do_sample=False, max_new_tokens=expected.shape[1],
        pad_token_id=0, eos_token_id=-1, legacy_decode_positions=True,
    )  # fmt: skip
    assert torch.equal(out, expected)
