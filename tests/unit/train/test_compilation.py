"""--torch_compile_vision: the same training, the same names, and a clear refusal under ZeRO-3."""

from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from llava.train import compilation
from llava.train.compilation import compile_vision
from tests.support.training import losses_of, run_training
from tests.support.vlora_models import FLAGS

V1 = ["--version", "v1", "--data_path", "train/data.json", "--save_strategy", "no", "--max_steps", "2"]
BOTH = ["--mm_projector_type", "acformer_vlora", "--mm_num_visual_tokens", "9", "--mm_resampler_depth", "1", *FLAGS[2:]]


def test_compiled_training_is_the_same(tmp_path: Path, llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_training(tmp_path / "plain", *V1, *BOTH)
    # Traced only: differentiation and code generation are torch's affair.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    counters.clear()
    compiled = run_training(tmp_path / "compiled", *V1, *BOTH, "--torch_compile_vision", "True")
    assert counters["stats"]["unique_graphs"] >= 2, "nothing was compiled"
    assert not counters["graph_break"]
    torch._dynamo.reset()
    assert losses_of(compiled) == pytest.approx(losses_of(plain), abs=1e-4)
    names = [load_file(tmp_path / run / "model.safetensors").keys() for run in ("plain", "compiled")]
    assert names[0] == names[1]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="and there are none"):
        compile_vision(SimpleNamespace(get_vision_tower=lambda: None))
    monkeypatch.setattr(compilation, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"cannot be used with ZeRO-3.*--deepspeed scripts/zero2_clip\.json"):
        compile_vision(SimpleNamespace(get_vision_tower=lambda: "a tower"))
