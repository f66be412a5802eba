"""A run that was cut off and resumed equals one that was not: bit-equal losses and weights, in all three modes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llava.train.checkpoint import checkpoint_to_resume
from tests.support.ranks import run_on_ranks
from tests.support.training import final_state, losses_of, run_training

STAGE1 = ["--version", "plain", "--data_path", "train/data_plain.json", "--tune_mm_mlp_adapter", "True"]
FULL = ["--version", "v1", "--data_path", "train/data.json", "--group_by_modality_length", "True"]
LORA = [*FULL, "--lora_enable", "True", "--lora_r", "4", "--lora_dropout", "0.1", "--mm_projector_lr", "1e-3"]
MODES = {"stage1": STAGE1, "full": FULL, "lora": LORA}
ACFORMER = ["--mm_projector_type", "acformer", "--mm_num_visual_tokens", "9", "--mm_resampler_depth", "1"]
BOTH = ["--mm_projector_type", "acformer_vlora", *ACFORMER[2:], "--vlora_dim", "16", "--vlora_heads", "2"]
BOTH += ["--vlora_depth", "1", "--tune_vision_tower", "True", "--vision_tower_lr", "1e-4", "--B_matrix_lr", "1e-3"]
PACKED = ["--packing", "True", "--packing_length", "512"]
STEPS = ["--max_steps", "6", "--save_steps", "3", "--per_device_train_batch_size", "2"]


@pytest.mark.parametrize(
    "connector", [ACFORMER, [*BOTH, *PACKED]], ids=["acformer", "acformer_vlora and a tuned tower, packed"]
)
@pytest.mark.parametrize("mode", MODES)
def test_resumed_equals_uninterrupted(mode: str, connector: list[str], tmp_path: Path, llava_vectors: Path) -> None:
    flags = [*MODES[mode], *connector, *STEPS]
    whole, cut = tmp_path / "llava-whole", tmp_path / "llava-cut"
    expected = losses_of(run_training(whole, *flags))
    assert len(expected) == 6

    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    (cut / "checkpoint-5").mkdir()  # cut off while saving: it must be passed over
    (cut / "checkpoint-5/trainer_state.json").write_text('{"log_hist')
    resumed = run_training(cut, *flags)
    assert losses_of(resumed) == expected  # the log's first half comes from the checkpoint
    assert resumed.state.global_step == 6
    before, after = final_state(whole, mode), final_state(cut, mode)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_adapter_checkpoints_of_upstream_are_not_resumed(tmp_path: Path, llava_vectors: Path) -> None:
    """They hold a connector only: the run starts afresh instead of failing, and says so."""
    shutil.copytree("checkpoints/llava-v1-tiny-pretrain/checkpoint-2", tmp_path / "checkpoint-2")
    trainer = run_training(tmp_path, *STAGE1, "--max_steps", "1", "--save_steps", "5")
    assert trainer.state.global_step == 1
    assert json.loads((tmp_path / "checkpoint-2/config.json").read_text())


def test_stage1_writes_the_connector_only(tmp_path: Path, llava_vectors: Path) -> None:
    run_training(tmp_path, *STAGE1, *ACFORMER, "--max_steps", "2", "--save_steps", "1", "--save_total_limit", "1")
    for folder in (tmp_path, tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        assert not list(folder.glob("*.safetensors"))
        state = torch.load(folder / "mm_projector.bin", weights_only=True)
        assert state and all("mm_projector" in key for key in state)
        config = json.loads((folder / "config.json").read_text())
        assert config["mm_projector_type"] == "acformer"
        assert (config["mm_num_visual_tokens"], config["mm_resampler_depth"], config["mm_resampler_heads"]) == (9, 1, 8)
        assert config["use_cache"] is (folder == tmp_path)


def test_out_of_disk_leaves_no_half_file(tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_save = torch.save

    def failing(state: object, path: object, *args: object, **kwargs: object) -> None:
        if "mm_projector" in str(path):
            Path(str(path)).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real_save(state, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="No space left"):
        run_training(tmp_path, *STAGE1, "--max_steps", "1", "--save_steps", "5")
    assert not list(tmp_path.rglob("*mm_projector*"))


def test_interrupted_full_save_leaves_the_older_model(
    tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.train import llava_trainer

    out, steps = tmp_path / "llava", ["--max_steps", "1", "--save_strategy", "no"]
    run_training(out, *FULL, *steps)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fails(tokenizer: object, folder: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(llava_trainer, "save_tokenizer", fails)
    with pytest.raises(OSError, match="No space left"):
        run_training(out, *FULL, *steps, "--seed", "7")
    after = {file.name: file.read_bytes() for file in out.iterdir()}
    assert before.keys() == after.keys()
    assert before["model.safetensors"] == after["model.safetensors"]


def folder_with(folder: Path, *steps: int) -> str:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}/trainer_state.json").write_text("{}")
    return str(folder)


def test_all_ranks_resume_from_the_checkpoint_of_the_first(tmp_path: Path) -> None:
    """Nodes without a shared disk: one of them lags behind, or has nothing at all."""
    own = [folder_with(tmp_path / "first", 5), folder_with(tmp_path / "ahead", 5, 7)]
    chosen = run_on_ranks(2, tmp_path, lambda rank: checkpoint_to_resume(own[rank]))
    assert chosen == [f"{folder}/checkpoint-5" for folder in own]

    nothing = [folder_with(tmp_path / "empty"), own[1]]
    (tmp_path / "again").mkdir()
    assert run_on_ranks(2, tmp_path / "again", lambda rank: checkpoint_to_resume(nothing[rank])) == [None, None]


def test_a_rank_without_the_checkpoint_stops_all_of_them(tmp_path: Path) -> None:
    own = [folder_with(tmp_path / "first", 5), folder_with(tmp_path / "blind")]
    for error in run_on_ranks(2, tmp_path, lambda rank: checkpoint_to_resume(own[rank])):
        assert isinstance(error, ValueError)
        assert "do not have: 1. Put --output_dir on a disk that all nodes share" in str(error)
