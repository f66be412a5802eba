"""--use_liger_kernel, with a stand-in for the package that puts its own modules into the decoder as Liger does."""

import importlib.machinery
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llava.train import liger as liger_module
from tests.support.training import losses_of, run_training
from tests.unit.train.test_train_modes import V1, mistral

__all__ = ["mistral"]  # the fixture

STEP = [*V1, "--use_liger_kernel", "True", "--mm_projector_type", "mlp2x_gelu"]


class Kernels:
    """Records the calls of Liger's API; `norms` counts how often a replaced norm ran."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, bool]]] = []
        self.norms = 0

    def patch(self, family: str) -> Any:
        def apply(model: Any = None, **options: bool) -> None:
            self.calls.append((family, model, options))
            decoder = model.model
            for norm in [decoder.norm, *(layer.input_layernorm for layer in decoder.layers)]:
                norm.forward = types.MethodType(self.norm, norm)

        return apply

    def norm(self, module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        self.norms += 1
        return LlamaRMSNorm.forward(module, hidden)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    recorder = Kernels()
    package = types.ModuleType("liger_kernel")
    package.__spec__ = importlib.machinery.ModuleSpec("liger_kernel", None)
    package.transformers = types.SimpleNamespace(
        apply_liger_kernel_to_llama=recorder.patch("llama"), apply_liger_kernel_to_mistral=recorder.patch("mistral")
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setattr(liger_module.torch.cuda, "is_available", lambda: False)
    return recorder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as this module sees it: training itself stays on the CPU."""
    monkeypatch.setattr(
        liger_module, "torch", types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: True))
    )


@pytest.mark.parametrize("mode", [[], ["--lora_enable", "True", "--lora_r", "4"]], ids=["full", "lora"])
def test_the_decoder_gets_the_kernels_and_keeps_its_images(
    mode: list[str], kernels: Kernels, gpu: None, tmp_path: Path, llava_vectors: Path
) -> None:
    with_kernels = run_training(tmp_path / "with", *STEP, *mode)
    ((family, model, options),) = kernels.calls
    assert family == "llama" and hasattr(model, "get_vision_tower")
    assert kernels.norms > 0
    assert options == {
        "rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False,
    }  # fmt: skip
    plain = run_training(tmp_path / "plain", *STEP, *mode, "--use_liger_kernel", "False")
    assert losses_of(plain) == losses_of(with_kernels)


def test_mistral_gets_its_own(
    kernels: Kernels, gpu: None, mistral: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: None)
    run_training(tmp_path, *STEP, "--model_name_or_path", mistral)
    assert [family for family, _, _ in kernels.calls] == ["mistral"]


@pytest.mark.parametrize(
    "has_gpu, has_package, missing",
    [(False, True, "needs a GPU;"), (True, False, r"needs liger-kernel \(pip install liger-kernel\);"),
     (False, False, "needs a GPU and liger-kernel")],
)  # fmt: skip
def test_what_is_missing_is_named(
    has_gpu: bool, has_package: bool, missing: str, kernels: Kernels, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if has_gpu:
        request.getfixturevalue("gpu")
    if not has_package:
        monkeypatch.setattr(liger_module, "find_spec", lambda name: None)
    args = types.SimpleNamespace(use_liger_kernel=True)
    with caplog.at_level(logging.WARNING):
        liger_module.apply_liger_kernels(None, args)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("--use_liger_kernel " + missing.replace("\\", ""))
    assert args.use_liger_kernel is False and not kernels.calls
