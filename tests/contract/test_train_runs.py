"""Whole training runs in this process against upstream's recordings (vectors/llava/ckpt/train_runs.json)."""

import contextlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava import conversation as conversation_lib
from llava.model.builder import load_pretrained_model
from llava.train import train as train_module
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.llava_trainer import LLaVATrainer
from tests.conftest import VECTORS

RUNS = json.loads((VECTORS / "llava/ckpt/train_runs.json").read_text())
FILES = json.loads((VECTORS / "llava/ckpt/files.json").read_text())
INSPECT = [name for name in RUNS if name.startswith("inspect_")]


def run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str, stop_before_training: bool = False
) -> tuple[LLaVATrainer, Path]:
    """Run train() with the recorded flags, its output below `tmp_path`; gives the trainer and the output folder."""
    flags = [flag.replace("$TMP", str(tmp_path)) for flag in RUNS[name]["flags"]]
    position = flags.index("--output_dir") + 1
    flags[position] = str(tmp_path / Path(flags[position]).name)
    made: list[LLaVATrainer] = []

    class Stop(Exception):
        pass

    class Recorded(LLaVATrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            made.append(self)
            if stop_before_training:
                raise Stop
            return super().train(*args, **kwargs)

    monkeypatch.setattr(train_module, "LLaVATrainer", Recorded)
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--disable_tqdm", "True", *more])
    monkeypatch.setattr(conversation_lib, "default_conversation", conversation_lib.conv_templates["vicuna_v1"])
    with contextlib.suppress(Stop):
        train_module.train()
    return made[0], Path(flags[position])


def losses(trainer: LLaVATrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_setup(trainer: LLaVATrainer, name: str) -> None:
    """What the flags did to tokenizer, trainable set, configuration, sampler and optimizer groups."""
    recorded, model = RUNS[name], trainer.model
    tokenizer = trainer.processing_class
    facts = recorded["tokenizer"]
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == (
        facts["pad_token"],
        facts["pad_token_id"],
        facts["length"],
    )
    assert (tokenizer.padding_side, tokenizer.model_max_length) == (facts["padding_side"], facts["model_max_length"])
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == sorted(recorded["trainable"])
    assert sum(not p.requires_grad for p in model.parameters()) == recorded["frozen_count"]
    for key, value in recorded["mm_config"].items():
        if key in ("use_cache", "pretraining_tp"):
            continue
        assert getattr(model.config, key) == value, key
    same_template = [
        k for k, v in conversation_lib.conv_templates.items() if v is conversation_lib.default_conversation
    ]
    assert set(recorded["default_conversation"]) <= set(same_template)
    assert type(trainer._get_train_sampler(trainer.train_dataset)).__name__ == recorded["sampler"]

    by_id = {id(p): n for n, p in model.named_parameters()}
    trainer.optimizer = None
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == recorded["optimizer"]["cls"]
    ours = [
        {k: g[k] for k in ("lr", "weight_decay", "eps")} | {"params": sorted(by_id[id(p)] for p in g["params"])}
        for g in optimizer.param_groups
    ]
    expected = [
        {k: g[k] for k in ("lr", "weight_decay", "eps")} | {"params": sorted(g["params"])}
        for g in recorded["optimizer"]["groups"]
    ]
    assert ours == expected


@pytest.mark.parametrize("name", INSPECT)
def test_flags(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_vectors: Path) -> None:
    if RUNS[name]["error"]:
        with pytest.raises(BaseException) as caught:
            run(name, tmp_path, monkeypatch, stop_before_training=True)
        assert type(caught.value).__name__ == RUNS[name]["error"]["type"]
        return
    trainer, _ = run(name, tmp_path, monkeypatch, stop_before_training=True)
    check_setup(trainer, name)


@pytest.mark.parametrize("name, comparable", [("pretrain", 4), ("finetune", 4), ("lora", 2)])
def test_runs(name: str, comparable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_vectors: Path) -> None:
    """Loss curve, final weights and written files; a LoRA run starts from random adapters, so two losses only."""
    trainer, output = run(name, tmp_path, monkeypatch)
    recorded = [entry["loss"] for entry in RUNS[name]["log_history"] if "loss" in entry]
    assert losses(trainer)[:comparable] == pytest.approx(recorded[:comparable], abs=2e-3)
    check_files(output, FILES[output.name])
    if comparable == 4:
        state = dict(trainer.model.named_parameters())
        for key, norm in RUNS[name]["final_norms"].items():
            assert state[key].norm().item() == pytest.approx(norm, rel=1e-3), key


def check_files(folder: Path, recorded: dict[str, Any]) -> None:
    """Every file that upstream writes is there, with the same tensor names, shapes and dtypes."""
    for name, facts in recorded.items():
        if name in ("README.md", "trainer_state.json", "training_args.bin") or facts is None:
            continue
        path = folder / name
        assert path.exists(), name
        if "keys" in facts:
            state = load_file(path) if name.endswith(".safetensors") else torch.load(path, weights_only=True)
            assert {k: [list(v.shape), str(v.dtype)] for k, v in state.items()} == facts["keys"], name
        if name == "adapter_config.json":
            stored = json.loads(path.read_text())
            assert stored.keys() == facts["json"].keys()
            assert sorted(stored["target_modules"]) == sorted(facts["json"]["target_modules"])
        if name == "config.json" and "json" in facts:
            stored = json.loads(path.read_text())
            ignored = {"_name_or_path", "transformers_version", "architectures"}
            for key in set(facts["json"]) - ignored:
                assert stored[key] == facts["json"][key], key


def test_trained_checkpoints_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_vectors: Path) -> None:
    """What a LoRA run writes, final and intermediate, opens for inference, with the weights it had."""
    trainer, output = run("lora", tmp_path, monkeypatch, "--save_strategy", "steps", "--save_steps", "2")
    ids = torch.tensor([[1, 300, 301, -200, 302]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(input_ids=ids, images=pixels).logits
    for folder in (output, output / "checkpoint-4"):
        options = {"device": "cpu", "dtype": torch.float32}
        _, model, _, _ = load_pretrained_model(str(folder), "assets/base-llama", "llava-lora", **options)
        with torch.no_grad():
            torch.testing.assert_close(model(ids, images=pixels).logits, expected, rtol=0, atol=1e-4)


def test_lora_with_added_tokens_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_vectors: Path
) -> None:
    """Upstream could not load this one: the base's vocabulary is smaller than the configuration's."""
    trainer, output = run("lora_imse", tmp_path, monkeypatch)
    options = {"device": "cpu", "dtype": torch.float32}
    tokenizer, model, _, _ = load_pretrained_model(str(output), "assets/base-llama", output.name, **options)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 723
    ids = torch.tensor([[1, 300, 721, -200, 722]])
    pixels = torch.zeros(1, 3, 56, 56)
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(input_ids=ids, images=pixels).logits
        torch.testing.assert_close(model(ids, images=pixels).logits, expected, rtol=0, atol=1e-4)


def test_flag_list_is_frozen() -> None:
    """Upstream's flags and defaults; additions are listed here, so that none appears unnoticed."""
    recorded = json.loads((VECTORS / "llava/train/arguments.json").read_text())
    ours = {cls.__name__: cls for cls in (ModelArguments, DataArguments, TrainingArguments)}
    for name, defaults in recorded.items():
        by_name = {f.name: f.default for f in fields(ours[name])}
        assert {key: by_name[key] for key in defaults} == defaults
    added = {
        "ModelArguments": {"s2", "s2_scales", "torch_compile_vision", "tune_vision_tower", "mm_elastic_budgets"},
        "DataArguments": {"on_bad_sample", "image_grid_pinpoints"},
    }
    for name, extra in added.items():
        assert {f.name for f in fields(ours[name])} == set(recorded[name]) | extra
