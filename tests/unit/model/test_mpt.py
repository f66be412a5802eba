"""MPT: the names import, a use says what to do instead."""

import json
from pathlib import Path

import pytest

from llava.model import LlavaMptConfig, LlavaMptForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_mpt import LlavaMptModel


def test_a_use_is_refused() -> None:
    for name in (LlavaMptForCausalLM, LlavaMptModel):
        with pytest.raises(NotImplementedError, match="Llama or Mistral"):
            name(LlavaMptConfig())
    with pytest.raises(NotImplementedError, match="Llama or Mistral"):
        LlavaMptForCausalLM.from_pretrained("anything")


@pytest.mark.parametrize("model_type, name", [("llava_mpt", "my-model"), ("llava", "llava-mpt-7b")])
def test_a_checkpoint_is_refused(model_type: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "mm_vision_tower": "x"}))
    with pytest.raises(NotImplementedError, match="MPT is not supported"):
        load_pretrained_model(str(tmp_path), None, name)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"], "nothing may be written into an input folder"
