"""VLoRA's stage-1 file: what is said when it does not fit."""

from pathlib import Path

import pytest

from tests.support.training import run_training

STAGE1 = ["--version", "plain", "--data_path", "train/data_plain.json", "--tune_mm_mlp_adapter", "True"]
FULL = ["--version", "v1", "--data_path", "train/data.json"]
SHORT = ["--save_strategy", "no", "--max_steps", "1"]
VLORA = ["--mm_projector_type", "vlora", "--vlora_depth", "1", "--vlora_heads", "2", "--vlora_rank", "4"]


def test_another_width_of_the_generator_is_explained(tmp_path: Path, llava_vectors: Path) -> None:
    """The contradiction of the published scripts, 1024 against 512, at a smaller scale."""
    run_training(tmp_path / "a", *STAGE1, *SHORT, *VLORA, "--vlora_dim", "32")
    pretrained = ["--pretrain_mm_mlp_adapter", str(tmp_path / "a/mm_projector.bin")]
    with pytest.raises(ValueError, match="was trained with vlora_dim 32, but --vlora_dim 16"):
        run_training(tmp_path / "b", *FULL, *SHORT, *VLORA, "--vlora_dim", "16", *pretrained)
    (tmp_path / "a/config.json").unlink()  # a file that came alone: its shapes tell
    with pytest.raises(ValueError, match=r"vlora_dim 32, this one 16\. Give --vlora_dim 32, or train stage 1 again"):
        run_training(tmp_path / "b", *FULL, *SHORT, *VLORA, "--vlora_dim", "16", *pretrained)
    with pytest.raises(ValueError, match=r"(?s)does not fit the connector 'vlora'.*size mismatch for"):
        run_training(tmp_path / "c", *FULL, *SHORT, *VLORA, "--vlora_rank", "2", "--vlora_dim", "32", *pretrained)
