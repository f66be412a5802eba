"""What a run writes, and what it finds out about writing before its first step."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from llava.train import checkpoint, disk_space, llava_trainer
from tests.support.training import run_training

FULL = ["--version", "v1", "--data_path", "train/data.json", "--max_steps", "1", "--save_strategy", "no"]


def test_a_base_with_sampling_values_can_be_saved(tmp_path: Path, llava_vectors: Path) -> None:
    """Vicuna states temperature and top_p without do_sample; the pad token is aligned, so the file is not as loaded."""
    shutil.copytree("assets/base-llama", tmp_path / "base")
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 5, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "base/generation_config.json").write_text(json.dumps(settings))
    run_training(tmp_path / "out", *FULL, "--model_name_or_path", str(tmp_path / "base"), "--version", "v0")
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"], written["top_p"]) == (True, 0.9, 0.6)
    assert written["pad_token_id"] != 5
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("mode", [[], ["--tune_mm_mlp_adapter", "True"], ["--lora_enable", "True"]])
def test_what_cannot_be_saved_is_known_before_the_first_step(
    mode: list[str], tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tokenizer: object, folder: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checkpoint, "save_tokenizer", fails)
    with pytest.raises(RuntimeError, match=r"could not be saved to .*, so training does not start.*Read-only"):
        run_training(tmp_path / "out", *FULL, *mode)
    assert not list((tmp_path / "out").iterdir())


STEPS = [*FULL, "--save_strategy", "steps", "--max_steps", "3", "--per_device_train_batch_size", "2"]


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


def test_the_last_step_writes_no_checkpoint_of_its_own(tmp_path: Path, llava_vectors: Path) -> None:
    run_training(tmp_path / "out", *STEPS, "--save_steps", "2")
    assert checkpoints(tmp_path / "out") == {"checkpoint-2"}
    assert (tmp_path / "out/model.safetensors").is_file()
    run_training(tmp_path / "none", *STEPS, "--save_steps", "50")
    assert checkpoints(tmp_path / "none") == set()


@pytest.mark.parametrize("mode", [[], ["--tune_mm_mlp_adapter", "True"], ["--lora_enable", "True"]])
def test_the_estimate_is_what_a_run_writes(mode: list[str], tmp_path: Path, llava_vectors: Path) -> None:
    out = tmp_path / "out"
    trainer = run_training(out, *STEPS, *mode, "--save_steps", "1", "--save_total_limit", "2")
    size = disk_space.RunSize.of_run(trainer.model, trainer.args)
    known = ("*.safetensors", "mm_projector.bin", "non_lora_trainables.bin")
    weights = sum(path.stat().st_size for pattern in known for path in out.glob(pattern))
    assert weights == pytest.approx(size.weights, rel=0.05, abs=20_000)
    state = (out / "checkpoint-3/optimizer.pt").stat().st_size
    assert weights + state == pytest.approx(size.checkpoint, rel=0.05, abs=50_000)


def test_too_little_disk_space_is_refused_before_the_first_step(
    tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = {"bytes": 1_500_000}
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(10**9, 0, free["bytes"]))
    flags = [*STEPS, "--save_steps", "1", "--save_total_limit", "1"]
    with pytest.raises(OSError, match=r"2 checkpoints of .* where 1\.5 MB are free\. Make room, choose another"):
        run_training(tmp_path / "out", *flags)
    assert checkpoints(tmp_path / "out") == set()
    trainer = run_training(tmp_path / "out", *flags, "--save_strategy", "no", "--output_dir", str(tmp_path / "small"))
    assert trainer.state.global_step == 3
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(0, 0, 0))  # a disk that does not tell
    assert run_training(tmp_path / "unknown", *flags).state.global_step == 3


def test_small_checkpoints_of_the_connector_are_all_kept_and_large_ones_counted(
    tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*STEPS, "--tune_mm_mlp_adapter", "True", "--save_steps", "1", "--save_total_limit", "1"]
    caplog.set_level("INFO", logger="llava")
    run_training(tmp_path / "small", *flags)
    assert checkpoints(tmp_path / "small") == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert caplog.text.count("All checkpoints of the connector are kept") == 1
    monkeypatch.setattr(llava_trainer, "SMALL_CHECKPOINT", 1000)
    run_training(tmp_path / "large", *flags)
    assert checkpoints(tmp_path / "large") == {"checkpoint-3"}
    assert caplog.text.count("--save_total_limit counts") == 1
