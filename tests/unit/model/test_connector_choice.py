"""Opening a checkpoint with another budget or connector, and published-style checkpoints by their keys."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.eval.model_vqa_loader import build_parser as vqa_parser
from llava.eval.model_vqa_loader import eval_model
from llava.model.builder import load_pretrained_model
from llava.program import RequestError
from llava.tokenization import load_tokenizer
from llava.tokenizer_files import save_tokenizer
from tests.support.connectors import ELASTIC, flags
from tests.support.training import run_training
from tests.unit.model.test_connector_models import STAGE1, STAGE2, logits, open_model

MLP = Path("checkpoints/llava-v1-tiny-mlp2x")
PROMPT = torch.tensor([[1, 300, -200, 13, 301]])


def random_images(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ELASTIC)
def test_budget_at_load_and_per_call(name: str, tmp_path: Path, llava_vectors: Path) -> None:
    trained, other = {"pooling": (5, 17), "pooling_pr": (5, 17), "c_abstractor": (9, 4), "evit": (10, 6)}.get(
        name, (9, 5)
    )
    run_training(tmp_path, *STAGE2, *flags(name, trained))
    model, changed = open_model(tmp_path), open_model(tmp_path, mm_num_visual_tokens=other)
    assert (model.num_visual_tokens, changed.num_visual_tokens) == (trained, other)
    assert changed.config.mm_num_visual_tokens == other
    assert logits(changed).shape[1] == 4 + 2 * other
    with torch.no_grad():
        at_load = changed(PROMPT, images=random_images()).logits
        per_call = model(PROMPT, images=random_images(), num_visual_tokens=other).logits
        assert torch.equal(at_load, per_call)
        assert model(PROMPT, images=random_images()).logits.shape[1] == 4 + trained, "one call leaves no trace"
    options = {"images": random_images(), "do_sample": False, "max_new_tokens": 4}
    assert torch.equal(model.generate(PROMPT, num_visual_tokens=other, **options), changed.generate(PROMPT, **options))
    # What a changed model saves, opens with the changed budget.
    changed.save_pretrained(tmp_path / "llava-changed")
    assert json.loads((tmp_path / "llava-changed/config.json").read_text())["mm_num_visual_tokens"] == other


def test_budget_changed_at_load_selects_as_if_trained_with_it(tmp_path: Path, llava_vectors: Path) -> None:
    """Same weights, same image: the visual tokens of a model whose configuration says so from the start."""
    run_training(tmp_path, *STAGE2, *flags("acformer", 17))
    changed = open_model(tmp_path, mm_num_visual_tokens=5)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"mm_num_visual_tokens": 5}))
    assert torch.equal(changed.encode_images(random_images(3)), open_model(tmp_path).encode_images(random_images(3)))


def test_budget_of_a_stage1_checkpoint(tmp_path: Path, llava_vectors: Path) -> None:
    run_training(tmp_path / "llava-first", *STAGE1, *flags("acformer", 9))
    model = open_model(tmp_path / "llava-first", "assets/base-llama", mm_num_visual_tokens=13)
    assert logits(model).shape[1] == 4 + 2 * 13


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("acformer", {"mm_num_visual_tokens": 7}, None),  # rounded down to 5, with a warning
        (
            "acformer",
            {"mm_num_visual_tokens": 3},
            "Legal values of mm_num_visual_tokens for this tower are 5, 9, 13, 17",
        ),
        ("perceiver", {"mm_num_visual_tokens": 5}, "built into the weights of 'perceiver'"),
        ("pixel_shuffle", {"mm_num_visual_tokens": 9}, "built into the weights of 'pixel_shuffle'"),
        ("acformer", {"mm_resampler_heads": 4}, "mm_resampler_heads is 2 in this checkpoint"),
        ("acformer", {"mm_random_seed": 4}, "has no setting mm_random_seed"),
        ("acformer", {"mm_projector_type": "top_p"}, "fit: acformer, pooling_pr, random_pr"),
        ("c_abstractor", {"mm_projector_type": "acformer"}, "cannot serve as 'acformer'"),
    ],
)
def test_overrides_of_our_checkpoints(
    name: str, options: dict[str, Any], message: str | None, tmp_path: Path, llava_vectors: Path
) -> None:
    run_training(tmp_path, *STAGE2, *flags(name))
    if message is None:
        assert open_model(tmp_path, **options).num_visual_tokens == 5
        return
    with pytest.raises(RequestError) as caught:
        open_model(tmp_path, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name, tokens", [("top_p", 9), ("evit", 10), ("pooling", 5), ("visionzip", 9)])
def test_training_free_connectors_on_an_mlp_checkpoint(name: str, tokens: int, llava_vectors: Path) -> None:
    """The tokens are the MLP's image of what the rule picks: same weights, no training."""
    plain = open_model(MLP)
    model = open_model(MLP, mm_projector_type=name, mm_num_visual_tokens=tokens)
    assert model.num_visual_tokens == tokens
    tower, connector = model.get_vision_tower(), model.model.mm_projector
    with torch.no_grad():
        features = tower.encode(random_images(2), need_cls_attention=True, need_patch_keys=True)
        expected = plain.model.mm_projector(connector.reduce(features, tokens))
        torch.testing.assert_close(model.encode_images(random_images(2)), expected, rtol=0, atol=1e-6)
    assert model.generate(PROMPT, images=random_images(), max_new_tokens=3).shape[0] == 1
    assert open_model(MLP).config.mm_projector_type == "mlp2x_gelu", "the checkpoint is as it was"


def test_all_patches_as_anchors_are_the_mlp_itself(llava_vectors: Path) -> None:
    """Top-P with every patch differs from LLaVA only by the class token in front."""
    everything = open_model(MLP, mm_projector_type="top_p", mm_num_visual_tokens=17)
    torch.testing.assert_close(
        everything.encode_images(random_images())[:, 1:],
        open_model(MLP).encode_images(random_images()),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["acformer", "perceiver", "pooling_pr", "random_pr", "c_abstractor", "pixel_shuffle"])
def test_impossible_overrides_of_an_mlp_checkpoint(name: str, llava_vectors: Path) -> None:
    with pytest.raises(RequestError) as caught:
        open_model(MLP, mm_projector_type=name)
    assert f"cannot serve as '{name}' without training" in str(caught.value)
    assert "evit, pooling, top_p, visionzip" in str(caught.value)


def test_other_refused_overrides(llava_vectors: Path) -> None:
    with pytest.raises(RequestError, match=r"without mm_num_visual_tokens.*top_p"):
        open_model(MLP, mm_num_visual_tokens=9)
    with pytest.raises(RequestError, match="cannot serve as 'nonsense'"):
        open_model(MLP, mm_projector_type="nonsense")
    with pytest.raises(RequestError, match="Legal values of mm_num_visual_tokens"):
        open_model(MLP, mm_projector_type="top_p", mm_num_visual_tokens=145)
    with pytest.raises(RequestError, match="use flat"):
        open_model(Path("checkpoints/llava-v1.6-tiny-anyres-unpad"), mm_projector_type="top_p", mm_num_visual_tokens=9)
    with pytest.raises(RequestError, match="plain language model"):
        load_pretrained_model("assets/base-llama", None, "vicuna", mm_projector_type="top_p")
    with pytest.raises(ValueError, match="fixed number of visual tokens, 16"):
        open_model(MLP)(PROMPT, images=random_images(), num_visual_tokens=9)


def test_linear_and_lora_checkpoints_too(llava_vectors: Path) -> None:
    linear = open_model(
        Path("checkpoints/llava-v1-tiny-linear-imse"), mm_projector_type="pooling", mm_num_visual_tokens=10
    )
    assert linear.num_visual_tokens == 10
    path, base = Path("checkpoints/llava-v1-tiny-lora"), "assets/base-llama"
    plain = open_model(path, base)
    lora = open_model(path, base, mm_projector_type="top_p", mm_num_visual_tokens=17)
    torch.testing.assert_close(
        lora.encode_images(random_images())[:, 1:], plain.encode_images(random_images()), rtol=0, atol=1e-6
    )


def test_flags_of_the_programs(tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer generator opens the checkpoint with what its flags say."""
    questions = tmp_path / "q.jsonl"
    image = next(Path("assets/images").iterdir()).name
    questions.write_text(json.dumps({"question_id": 1, "image": image, "text": "What?"}) + "\n")
    seen: list[Any] = []
    from llava.eval.answering import answerer

    monkeypatch.setattr(
        answerer, "load_pretrained_model", lambda *a, **k: seen.append(k) or load_pretrained_model(*a, **k)
    )
    common = ["--model-path", str(MLP), "--question-file", str(questions), "--image-folder", "assets/images",
              "--answers-file", str(tmp_path / "a.jsonl"), "--temperature", "0", "--conv-mode", "vicuna_v1",
              "--max_new_tokens", "2"]  # fmt: skip
    for spelling in ("--mm_num_visual_tokens", "--mm-num-visual-tokens"):
        args = vqa_parser().parse_args([*common, "--mm_projector_type", "top_p", spelling, "9"])
        eval_model(args, num_workers=0)
        assert (seen[-1]["mm_projector_type"], seen[-1]["mm_num_visual_tokens"]) == ("top_p", 9)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


# Published-style checkpoints


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our connector's entries under the published names."""
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        if key == "latents":
            result["0.latents"] = value
        elif key.startswith("resampler.media."):
            name = {"norm_weight": "norm_media.weight", "norm_bias": "norm_media.bias", "to_kv": "to_kv.weight"}[
                parts[2]
            ]
            result |= {f"0.layers.{i}.0.{name}": layer.clone() for i, layer in enumerate(value)}
        elif parts[0] == "mlp":
            result[f"{int(parts[1]) + 1}.{parts[2]}"] = value
        elif key.startswith("resampler.norm."):
            result[f"0.norm.{parts[2]}"] = value
        elif parts[3] == "feed_forward":
            result[f"0.layers.{parts[2]}.1.{'.'.join(parts[4:])}"] = value
        elif parts[0] == "resampler":
            result[f"0.layers.{parts[2]}.0.{'.'.join(parts[3:])}"] = value
    return result


def abstractor_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for key, value in state.items():
        stage, block, part, *rest = key.split(".")
        if stage == "mlp":
            result[f"{int(block) + 1}.{part}"] = value
            continue
        place = {"conv": f"conv{part[-1]}.conv", "norm": f"conv{part[-1]}.bn", "squee": "se.fc1", "excit": "se.fc2"}
        name = place[part[:4] if part[:4] in place else part[:5]]
        result[f"0.net.{'0' if stage == 'before' else '2'}.b{int(block) + 1}.{name}.{'.'.join(rest)}"] = value
    return result


def publish(folder: Path, sharded: bool, binary: bool) -> None:
    """Rewrite a checkpoint of ours as the published program would have written it: other keys, config.json of LLaVA."""
    forget_connector(folder)
    state = load_file(folder / "model.safetensors")
    prefix = "model.mm_projector."
    ours = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    rest = {k: v for k, v in state.items() if not k.startswith(prefix)}
    names = published_names if "resampler.norm.weight" in ours else abstractor_names
    theirs = {f"{prefix}{k}": v for k, v in names(ours).items()}
    if "resampler.norm.weight" in ours and f"{prefix}0.latents" not in theirs:
        theirs[f"{prefix}0.latents"] = torch.randn(8, ours["resampler.norm.weight"].shape[0])
    (folder / "model.safetensors").unlink()
    parts = {"00001": rest, "00002": theirs} if sharded else {None: rest | theirs}
    suffix, stem = ("bin", "pytorch_model") if binary else ("safetensors", "model")
    places = {}
    for number, part in parts.items():
        name = f"{stem}.{suffix}" if number is None else f"{stem}-{number}-of-00002.{suffix}"
        torch.save(part, folder / name) if binary else save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    if sharded:
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_published_full_checkpoint(
    sharded: bool, binary: bool, tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = run_training(tmp_path, *STAGE2, *flags("acformer")).model
    publish(tmp_path, sharded, binary)
    with caplog.at_level(logging.WARNING):
        model = open_model(tmp_path, mm_num_visual_tokens=9, mm_resampler_heads=2)
    assert "MISSING" not in caplog.text and "UNEXPECTED" not in caplog.text
    assert model.config.mm_projector_type == "acformer"
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-5)
    # The other connectors that read the same weights.
    as_pooling = open_model(tmp_path, mm_projector_type="pooling_pr", mm_num_visual_tokens=5, mm_resampler_heads=2)
    assert logits(as_pooling).shape[1] == 4 + 2 * 5
    as_perceiver = open_model(tmp_path, mm_projector_type="perceiver", mm_resampler_heads=2)
    assert logits(as_perceiver).shape[1] == 4 + 2 * 8, "as many as the file has latents"
    with pytest.raises(RequestError, match="not a multiple of mm_resampler_heads 3"):
        open_model(tmp_path, mm_resampler_heads=3)
    with pytest.raises(RequestError, match="cannot serve as 'top_p'"):
        open_model(tmp_path, mm_projector_type="top_p", mm_resampler_heads=2)


def test_published_checkpoint_without_a_word_from_the_caller(
    tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_training(tmp_path, *STAGE2, *flags("acformer"))
    publish(tmp_path, sharded=False, binary=False)
    with caplog.at_level(logging.WARNING), pytest.raises(RequestError, match="144 visual anchors are more than"):
        open_model(tmp_path)  # the default of 145 suits CLIP-L/336, not this tower
    assert "does not record mm_num_visual_tokens and mm_resampler_heads" in caplog.text


def test_published_c_abstractor(tmp_path: Path, llava_vectors: Path) -> None:
    trained = run_training(tmp_path, *STAGE2, *flags("c_abstractor")).model
    publish(tmp_path, sharded=False, binary=False)
    model = open_model(tmp_path, mm_num_visual_tokens=9)
    assert model.config.mm_projector_type == "c_abstractor"
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-5)


def test_published_stage1_and_training_from_published_weights(tmp_path: Path, llava_vectors: Path) -> None:
    trained = run_training(tmp_path / "llava-first", *STAGE1, *flags("acformer")).model
    folder = tmp_path / "llava-first"
    state = torch.load(folder / "mm_projector.bin", weights_only=True)
    prefix = "model.mm_projector."
    ours = {k.removeprefix(prefix): v for k, v in state.items()}
    torch.save({f"{prefix}{k}": v for k, v in published_names(ours).items()}, folder / "mm_projector.bin")
    forget_connector(folder)
    model = open_model(folder, "assets/base-llama", mm_num_visual_tokens=9, mm_resampler_heads=2)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-5)

    second = run_training(tmp_path / "full", *STAGE2, *flags("acformer")).model
    publish(tmp_path / "full", sharded=False, binary=False)
    base = ["--model_name_or_path", str(tmp_path / "full"), "--learning_rate", "0"]
    again = run_training(tmp_path / "again", *STAGE2, *flags("acformer"), *base).model
    torch.testing.assert_close(logits(again), logits(second), rtol=0, atol=1e-5)


def test_published_weights_in_old_torch_files(tmp_path: Path, llava_vectors: Path) -> None:
    """Files from before torch 1.6 are no zip archives."""
    trained = run_training(tmp_path, *STAGE2, *flags("acformer")).model
    publish(tmp_path, sharded=False, binary=True)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model = open_model(tmp_path, mm_num_visual_tokens=9, mm_resampler_heads=2)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-5)


def test_published_lora(tmp_path: Path, llava_vectors: Path) -> None:
    lora = ["--lora_enable", "True", "--lora_r", "4"]
    trained = run_training(tmp_path / "llava-lora", *STAGE2, *flags("acformer"), *lora).model
    path = tmp_path / "llava-lora/non_lora_trainables.bin"
    state, prefix = torch.load(path, weights_only=True), "base_model.model.model.mm_projector."
    ours = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    others = {k: v for k, v in state.items() if not k.startswith(prefix)}
    torch.save(others | {f"{prefix}{k}": v for k, v in published_names(ours).items()}, path)
    forget_connector(tmp_path / "llava-lora")
    options = {"mm_num_visual_tokens": 9, "mm_resampler_heads": 2}
    model = open_model(tmp_path / "llava-lora", "assets/base-llama", **options)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-4)


def test_lora_that_left_the_connector_to_its_base(tmp_path: Path, llava_vectors: Path) -> None:
    """Own and published base; and a base that has none either, which must not open with random weights."""
    run_training(tmp_path / "llava-base", *STAGE2, *flags("acformer"))
    base = ["--model_name_or_path", str(tmp_path / "llava-base")]
    lora = ["--lora_enable", "True", "--lora_r", "4", "--freeze_mm_mlp_adapter", "True"]
    trained = run_training(tmp_path / "llava-lora", *STAGE2, *flags("acformer"), *base, *lora).model
    extras = torch.load(tmp_path / "llava-lora/non_lora_trainables.bin", weights_only=True)
    assert not any("mm_projector" in key for key in extras)
    model = open_model(tmp_path / "llava-lora", str(tmp_path / "llava-base"))
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-4)
    publish(tmp_path / "llava-base", sharded=False, binary=False)
    model = open_model(tmp_path / "llava-lora", str(tmp_path / "llava-base"))
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-4)
    with pytest.raises(OSError, match="holds the weights of the connector 'acformer'"):
        open_model(tmp_path / "llava-lora", "assets/base-llama")


def test_conversion_tools_refuse_what_they_would_spoil(tmp_path: Path, llava_vectors: Path) -> None:
    from llava.model.consolidate import consolidate_ckpt

    run_training(tmp_path / "llava-a", *STAGE2, *flags("acformer"))
    consolidate_ckpt(str(tmp_path / "llava-a"), str(tmp_path / "own"))
    publish(tmp_path / "llava-a", sharded=False, binary=False)
    with pytest.raises(RequestError, match="published-style checkpoint"):
        consolidate_ckpt(str(tmp_path / "llava-a"), str(tmp_path / "theirs"))
    assert not (tmp_path / "theirs").exists()


def test_what_is_opened_by_an_override_is_saved_whole(tmp_path: Path, llava_vectors: Path) -> None:
    """All settings stand in config.json, also those that nobody gave."""
    model = open_model(MLP, mm_projector_type="evit", mm_num_visual_tokens=9)
    model.save_pretrained(tmp_path / "llava-evit")
    save_tokenizer(load_tokenizer(str(MLP)), str(tmp_path / "llava-evit"))
    config = json.loads((tmp_path / "llava-evit/config.json").read_text())
    expected = {
        "mm_projector_type": "evit",
        "mm_num_visual_tokens": 10,
        "mm_evit_normalize": True,
        "mm_projector_mlp": "mlp2x_gelu",
    }
    assert {key: config[key] for key in expected} == expected
    torch.testing.assert_close(logits(open_model(tmp_path / "llava-evit")), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [0, -2])
def test_heads_that_are_no_heads(heads: int, tmp_path: Path, llava_vectors: Path) -> None:
    run_training(tmp_path, *STAGE2, *flags("acformer"))
    with pytest.raises(RequestError, match="mm_resampler_heads"):
        open_model(tmp_path, mm_resampler_heads=heads)
    publish(tmp_path, sharded=False, binary=False)
    with pytest.raises(RequestError, match=f"not a multiple of mm_resampler_heads {heads}"):
        open_model(tmp_path, mm_resampler_heads=heads)


def test_going_on_from_a_checkpoint(tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What no weight depends on follows the flags; what the weights were trained with stays, with a word."""
    run_training(tmp_path / "a", *STAGE2, *flags("acformer"))
    base = ["--model_name_or_path", str(tmp_path / "a"), "--mm_projector_type", "acformer"]
    more = ["--mm_num_visual_tokens", "5", "--mm_anchor_layer", "1", "--mm_resampler_depth", "4"]
    with caplog.at_level(logging.WARNING):
        config = run_training(tmp_path / "b", *STAGE2, *base, *more, "--mm_contextual_tokens", "3").model.config
    assert (config.mm_num_visual_tokens, config.mm_anchor_layer, config.mm_resampler_depth) == (5, 1, 2)
    assert "mm_resampler_depth 2 is kept" in caplog.text
    assert "--mm_contextual_tokens has no effect on the connector acformer" in caplog.text


def test_stage2_with_other_settings_than_stage1(
    tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two heads of 8 and four of 4 have the same shapes: only config.json beside the file knows."""
    run_training(tmp_path / "llava-first", *STAGE1, *flags("acformer"))
    adapter = ["--pretrain_mm_mlp_adapter", str(tmp_path / "llava-first/mm_projector.bin")]
    other_heads = ["--mm_resampler_heads", "4", "--mm_resampler_dim_head", "4"]
    with pytest.raises(ValueError, match="was trained with mm_resampler_heads 2, but --mm_resampler_heads 4"):
        run_training(tmp_path / "second", *STAGE2, *flags("acformer"), *adapter, *other_heads)
    with caplog.at_level(logging.WARNING):
        run_training(tmp_path / "second", *STAGE2, *flags("acformer", 5), *adapter)
        assert "trained with mm_num_visual_tokens 9, training continues with 5" in caplog.text
        run_training(tmp_path / "third", *STAGE2, *flags("pooling_pr"), *adapter)
        assert "was trained as 'acformer' and is used as 'pooling_pr'" in caplog.text


def forget_connector(folder: Path) -> None:
    """config.json as the published program writes it: LLaVA's, without a word of the connector."""
    config = json.loads((folder / "config.json").read_text())
    ours = ("mm_resampler", "mm_num", "mm_anchor", "mm_abstr", "mm_proj")
    own = {key: value for key, value in config.items() if not key.startswith(ours)}
    (folder / "config.json").write_text(json.dumps(own | {"mm_projector_type": "mlp2x_gelu"}))
