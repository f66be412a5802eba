"""Training paths beside the recorded ones: text only, Mistral, S2, other connectors, bad samples, loggers."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.image_processing import process_images
from llava.model import LlavaLlamaForCausalLM, LlavaMistralForCausalLM
from llava.model.builder import load_pretrained_model
from llava.tokenizer_files import save_tokenizer
from llava.train.arguments import parse_arguments
from tests.support.training import losses_of, run_training

V1 = ["--version", "v1", "--data_path", "train/data.json", "--save_strategy", "no", "--max_steps", "1"]


@pytest.fixture
def mistral(tmp_path: Path, llava_vectors: Path) -> str:
    from transformers import MistralConfig, MistralForCausalLM

    from llava.tokenization import load_tokenizer

    config = MistralConfig(
        vocab_size=720, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    load_tokenizer("assets/base-llama").save_pretrained(tmp_path / "mistral")
    return str(tmp_path / "mistral")


def test_mistral_bases_get_the_mistral_class(mistral: str, tmp_path: Path) -> None:
    out = tmp_path / "llava-out"
    trainer = run_training(out, *V1, "--model_name_or_path", mistral, "--mm_projector_type", "mlp2x_gelu")
    assert isinstance(trainer.model, LlavaMistralForCausalLM)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava_mistral"
    assert isinstance(load_pretrained_model(str(out), None, "llava", dtype=torch.float32)[1], LlavaMistralForCausalLM)


def test_text_only_training_of_a_plain_llm(
    tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import training

    flags = {k: v for k, v in training.BASE_FLAGS.items() if k != "--vision_tower"}
    monkeypatch.setattr(training, "BASE_FLAGS", flags)
    trainer = run_training(tmp_path, *V1, "--data_path", "train/data_text.json", "--group_by_modality_length", "True")
    assert type(trainer.model).__name__ == "LlamaForCausalLM"
    assert len(losses_of(trainer)) == 1
    model, processor = load_pretrained_model(str(tmp_path), None, "vicuna", dtype=torch.float32)[1:3]
    assert processor is None and not isinstance(model, LlavaLlamaForCausalLM)


def test_s2_tower_trains_and_opens_again(tmp_path: Path, llava_vectors: Path) -> None:
    run_training(tmp_path, *V1, "--s2", "True", "--s2_scales", "56,112", "--image_aspect_ratio", "pad")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["s2"], config["s2_scales"], config["mm_hidden_size"]) == (True, "56,112", 128)
    _, model, processor, _ = load_pretrained_model(str(tmp_path), None, "llava", dtype=torch.float32)
    assert processor.crop_size["height"] == 112
    images = torch.zeros(1, 3, 112, 112)
    assert model.generate(torch.tensor([[1, -200, 5]]), images=images, max_new_tokens=2).shape[0] == 1


def test_full_acformer_model_round_trip(tmp_path: Path, llava_vectors: Path) -> None:
    flags = ["--mm_projector_type", "acformer", "--mm_num_visual_tokens", "9", "--mm_resampler_depth", "2"]
    trainer = run_training(tmp_path, *V1, *flags)
    _, model, _, _ = load_pretrained_model(str(tmp_path), None, "llava", dtype=torch.float32)
    ids, images = torch.tensor([[1, 300, -200, 301]]), torch.randn(1, 3, 56, 56)
    trainer.model.eval()
    with torch.no_grad():
        logits = model(ids, images=images).logits
        torch.testing.assert_close(logits, trainer.model(ids, images=images).logits, rtol=0, atol=1e-5)
    assert logits.shape[1] == 3 + 9
    assert (model.config.conv_mode, model.num_visual_tokens) == ("v1", 9)


def test_checkpoints_connector_cannot_be_swapped_silently(tmp_path: Path, llava_vectors: Path) -> None:
    base = ["--model_name_or_path", "checkpoints/llava-v1-tiny-mlp2x"]
    with pytest.raises(ValueError, match="has the connector 'mlp2x_gelu'"):
        run_training(tmp_path / "a", *V1, *base, "--mm_projector_type", "acformer")
    trainer = run_training(tmp_path / "b", *V1, *base)  # the flag's default asks for nothing
    assert trainer.model.config.mm_projector_type == "mlp2x_gelu"


def test_settings_of_other_connectors_are_named(
    tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run_training(tmp_path, *V1, "--mm_projector_type", "mlp2x_gelu", "--mm_num_visual_tokens", "9")
    assert "--mm_num_visual_tokens has no effect on the connector mlp2x_gelu" in caplog.text
    assert "mm_num_visual_tokens" not in json.loads((tmp_path / "config.json").read_text())


def test_bad_samples(tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = json.loads(Path("train/data_plain.json").read_text())
    records[1]["image"] = "missing.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    flags = ["--version", "plain", "--data_path", str(tmp_path / "data.json"), "--tune_mm_mlp_adapter", "True"]
    flags += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--save_strategy", "no"]
    with pytest.raises(ValueError, match=r"p1.*missing\.png"):
        run_training(tmp_path / "stop", *flags)
    with caplog.at_level(logging.WARNING):
        trainer = run_training(tmp_path / "skip", *flags, "--on_bad_sample", "skip")
    assert losses_of(trainer)
    assert "missing.png" in caplog.text


def test_loggers_and_ignored_flags(tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs = tmp_path / "logs"
    ignored = ["--save_safetensors", "False", "--overwrite_output_dir", "True", "--use_liger_kernel", "True"]
    with caplog.at_level(logging.WARNING):
        run_training(tmp_path / "out", *V1, "--report_to", "tensorboard", "--logging_dir", str(logs), *ignored)
    assert list(logs.rglob("events.out.tfevents*"))
    for name in ("save_safetensors", "overwrite_output_dir", "use_liger_kernel"):
        assert f"--{name}" in caplog.text
    assert "llm_tokens_per_second" in (tmp_path / "out/trainer_state.json").read_text()


def test_a_tower_of_the_checkpoint_stays_frozen_and_without_adapters(tmp_path: Path, llava_vectors: Path) -> None:
    """LLaVA-1.6 checkpoints hold their tower (unfreeze_mm_vision_tower); training leaves it alone all the same."""
    tokenizer, model, _, _ = load_pretrained_model(
        "checkpoints/llava-v1-tiny-mlp2x", None, "llava", dtype=torch.float32
    )
    model.config.unfreeze_mm_vision_tower = True
    model.save_pretrained(tmp_path / "base")
    save_tokenizer(tokenizer, str(tmp_path / "base"))
    base = ["--model_name_or_path", str(tmp_path / "base"), "--mm_projector_type", "mlp2x_gelu"]
    for name, more in (("full", []), ("lora", ["--lora_enable", "True", "--lora_r", "4"])):
        trainer = run_training(tmp_path / name, *V1, *base, *more)
        tower = [(n, p) for n, p in trainer.model.named_parameters() if "vision_tower" in n]
        assert tower and not any(p.requires_grad or "lora_" in n for n, p in tower)


def test_a_checkpoints_settings_win_and_are_named(
    tmp_path: Path, llava_vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--mm_projector_type", "acformer", "--mm_resampler_depth", "1"]
    run_training(tmp_path / "base", *V1, *flags, "--mm_num_visual_tokens", "9")
    again = ["--model_name_or_path", str(tmp_path / "base"), "--mm_num_visual_tokens", "5", "--mm_resampler_depth", "2"]
    with caplog.at_level(logging.WARNING):
        trainer = run_training(tmp_path / "again", *V1, *flags, *again)
    assert trainer.model.config.mm_num_visual_tokens == 5  # no weight depends on it
    assert "mm_resampler_depth 1 is kept" in caplog.text


def test_bf16_trains_in_float32_and_saves_bf16(tmp_path: Path, llava_vectors: Path) -> None:
    """Without DeepSpeed. At 2e-5 a bf16 weight would stay where it is: its neighbours are 0.4 % away."""
    full, steps = tmp_path / "llava", ["--bf16", "True", "--learning_rate", "2e-5", "--max_steps", "3"]
    run_training(full, *V1, *steps, "--save_strategy", "steps", "--save_steps", "2")
    name = "model.layers.1.mlp.down_proj.weight"
    before = load_file("assets/base-llama/model.safetensors")[name].bfloat16()
    masters = load_file(full / "checkpoint-2/model.safetensors")[name]
    assert masters.dtype == torch.float32
    assert (masters == before).float().mean() < 0.01
    assert {value.dtype for value in load_file(full / "model.safetensors").values()} == {torch.bfloat16}

    for mode in ("tune_mm_mlp_adapter", "lora_enable"):  # from a checkpoint whose connector is bf16
        trainer = run_training(tmp_path / mode, *V1, *steps, f"--{mode}", "True", "--model_name_or_path", str(full))
        dtypes = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
        assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_anyres_trains_on_all_crops(tmp_path: Path, llava_vectors: Path) -> None:
    """Both stages, by the newline that ends the rows of a patch map; the checkpoint says how images are cut."""
    anyres = ["--image_aspect_ratio", "anyres", "--mm_patch_merge_type", "spatial_unpad", "--max_steps", "2"]
    anyres += ["--mm_projector_type", "mlp2x_gelu", "--save_strategy", "no", "--packing", "True"]
    plain = ["--version", "plain", "--data_path", "train/data_plain.json", "--tune_mm_mlp_adapter", "True"]
    first = run_training(tmp_path / "llava-first", *plain, *anyres)
    newline = first.model.model.image_newline.detach()
    state = torch.load(tmp_path / "llava-first/mm_projector.bin", weights_only=True)
    assert torch.equal(state["model.image_newline"], newline)
    measured = first.train_dataset.measured
    item = first.train_dataset.samples[0]
    assert item["image"].ndim == 4 and tuple(measured[0, 2:]) == item["image_size"]

    adapter = ["--pretrain_mm_mlp_adapter", str(tmp_path / "llava-first/mm_projector.bin"), "--learning_rate", "0"]
    pinpoints = ["--image_grid_pinpoints", "[[56, 112], [112, 56]]"]
    flags = ["--version", "v1", "--data_path", "train/data.json", *anyres, *adapter]
    second = run_training(tmp_path / "llava-second", *flags, *pinpoints)
    assert torch.equal(second.model.model.image_newline, newline)
    config = json.loads((tmp_path / "llava-second/config.json").read_text())
    assert config["image_grid_pinpoints"] == [[56, 112], [112, 56]] and config["image_aspect_ratio"] == "anyres"
    _, model, processor, _ = load_pretrained_model(str(tmp_path / "llava-second"), None, "llava", device="cpu")
    image = Image.new("RGB", (200, 90))
    crops = process_images([image], processor, model.config)
    assert crops.shape[1] == 3
    prompt = torch.tensor([[1, 300, -200, 13]])
    assert model.generate(prompt, images=crops, image_sizes=[image.size], max_new_tokens=2, do_sample=False).numel()

    with pytest.raises(ValueError, match="multiples of the vision tower's 56 pixels"):
        run_training(tmp_path / "llava-third", *flags, "--image_grid_pinpoints", "[[50, 112]]")
    with pytest.raises(ValueError, match="the connector 'acformer' gives 9 tokens that are not a grid"):
        run_training(tmp_path / "llava-third", *flags, "--mm_projector_type", "acformer", "--mm_num_visual_tokens", "9")


@pytest.mark.parametrize("asked", [["--fsdp"], ["--fsdp", "full_shard auto_wrap"], []])
def test_fsdp_is_refused_before_anything_is_loaded(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not asked:  # by accelerate's launcher
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP is not supported.*--deepspeed scripts/zero3\.json instead of --fsdp"):
        parse_arguments(["--output_dir", "unused", *asked])
