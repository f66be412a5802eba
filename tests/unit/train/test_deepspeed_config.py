"""DeepSpeed's files: which flags they overrule, and that those of our own overrule none."""

import logging
from types import SimpleNamespace

import pytest

from llava.train.deepspeed_config import overruled_flags, read_deepspeed_config, warn_of_overruled_flags
from tests.conftest import REPOSITORY

ASKED = {"max_grad_norm": 0.3, "mm_projector_lr": 2e-5, "B_matrix_lr": None, "vision_tower_lr": None}
ASKED |= {"lr_scheduler_type": "cosine", "process_index": 0}
DEFAULTS = ASKED | {"max_grad_norm": 1.0, "mm_projector_lr": None}


def config(name: str) -> dict:
    return read_deepspeed_config(str(REPOSITORY / f"scripts/{name}.json"))


@pytest.mark.parametrize(
    "name, overruled",
    [
        ("zero2", ["max_grad_norm"]),
        ("zero3", ["max_grad_norm"]),
        ("zero3_offload", ["mm_projector_lr", "lr_scheduler_type"]),
        ("zero2_clip", []),
        ("zero3_clip", []),
    ],
)
def test_what_each_file_overrules(name: str, overruled: list[str]) -> None:
    assert overruled_flags(config(name), SimpleNamespace(**ASKED)) == overruled
    assert overruled_flags(config(name), SimpleNamespace(**DEFAULTS)) == [f for f in overruled if f.startswith("lr_")]


def test_the_files_of_our_own_differ_in_clipping_only() -> None:
    for name in ("zero2", "zero3"):
        assert config(f"{name}_clip") == config(name) | {"gradient_clipping": "auto"}


def test_the_warning_names_flags_and_remedy(caplog: pytest.LogCaptureFixture) -> None:
    offload = str(REPOSITORY / "scripts/zero3_offload.json")
    with caplog.at_level(logging.WARNING):
        warn_of_overruled_flags(SimpleNamespace(**ASKED, deepspeed=None))
        warn_of_overruled_flags(SimpleNamespace(**ASKED | {"process_index": 1}, deepspeed=offload))
        warn_of_overruled_flags(SimpleNamespace(**ASKED, deepspeed=config("zero2_clip")))
        assert not caplog.records
        warn_of_overruled_flags(SimpleNamespace(**ASKED, deepspeed=offload))
    assert "these flags have no effect: --mm_projector_lr 2e-05, --lr_scheduler_type cosine" in caplog.text
    assert "scripts/zero3_clip.json" in caplog.text
