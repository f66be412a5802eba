"""What a run writes, and what it finds out about writing before its first step."""

import json
import shutil
from pathlib import Path

import pytest

from llava.train import checkpoint
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
    with pytest.raises(RuntimeError, match="could not be saved to .*, so training does not start.*Read-only"):
        run_training(tmp_path / "out", *FULL, *mode)
    assert not list((tmp_path / "out").iterdir())
