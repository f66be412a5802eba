"""The connectors are self-contained: a copy of their folder works in another code base."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

USE = """
import sys
sys.modules["llava"] = sys.modules["transformers"] = sys.modules["numpy"] = None  # importing any of them fails
from types import SimpleNamespace
import torch
from copied.builder import build_vision_projector
from copied.registry import CONNECTORS, find_connector
from copied.vision_features import VisionFeatures

features = VisionFeatures(torch.randn(2, 17, 32), torch.rand(2, 4, 16), torch.randn(2, 16, 32))
for name in [*CONNECTORS, "mlp2x_gelu"]:
    if "<k>" in name:
        continue
    config = SimpleNamespace(
        mm_projector_type=name, mm_num_visual_tokens={"pooling": 5, "pooling_pr": 5, "pixel_shuffle": 4}.get(name, 9),
        mm_hidden_size=32, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vlora_pos_num=16, vlora_dim=16,
        vlora_depth=1, vlora_heads=2,
    )
    connector = build_vision_projector(config)
    connector.check_tower(num_heads=4, num_patches=16)
    result = connector(features)
    space = find_connector(name).connector_class.space
    tokens = result[0] if space == "both" else result
    if space != "parameter":
        assert tokens.shape == (2, connector.num_visual_tokens, 32), name
print(len(CONNECTORS))
"""


def test_a_copy_of_the_folder_works_alone(tmp_path: Path) -> None:
    folder = REPOSITORY / "llava/model/multimodal_projector"
    shutil.copytree(folder, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    result = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 16
