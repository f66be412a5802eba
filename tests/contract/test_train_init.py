"""Growing vocabularies and finding LoRA targets against vectors/llava/train/init.json."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.model.families import read_config
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.tokenization import load_tokenizer
from llava.train.model_setup import find_all_linear_names, smart_tokenizer_and_embedding_resize
from tests.conftest import VECTORS

RECORDED = json.loads((VECTORS / "llava/train/init.json").read_text())
BASE = "assets/base-llama"


@pytest.fixture
def base(llava_vectors: Any) -> tuple[Any, Any]:
    config = read_config(LlavaConfig, BASE)
    return load_tokenizer(BASE), LlavaLlamaForCausalLM.from_pretrained(BASE, config=config, dtype=torch.float32)


def flags(**given: Any) -> SimpleNamespace:
    defaults = {"mm_use_im_patch_token": False, "mm_use_im_start_end": False, "tune_mm_mlp_adapter": False,
                "pretrain_mm_mlp_adapter": None}  # fmt: skip
    return SimpleNamespace(**(defaults | given))


def tables(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def test_smart_resize(base: tuple[Any, Any]) -> None:
    tokenizer, model = base
    facts = RECORDED["smart_resize"]
    smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    assert (len(tokenizer), tokenizer.pad_token_id) == (facts["len_tokenizer"], facts["pad_id"])
    for table, row in zip(tables(model), (facts["in_row"], facts["out_row"]), strict=True):
        assert table.shape[0] == facts["vocab"]
        torch.testing.assert_close(table[-1].detach(), torch.tensor(row), rtol=1e-4, atol=1e-6)


def test_vision_tokens(base: tuple[Any, Any]) -> None:
    tokenizer, model = base
    facts = RECORDED["initialize_vision_tokenizer"]
    args = flags(mm_use_im_patch_token=True, mm_use_im_start_end=True, tune_mm_mlp_adapter=True)
    model.initialize_vision_tokenizer(args, tokenizer)
    assert len(tokenizer) == facts["len_tokenizer"]
    assert {k: v for k, v in tokenizer.get_added_vocab().items() if v >= 720}.items() <= facts["added"].items()
    entry, output = tables(model)
    assert entry.shape[0] == facts["vocab"]
    assert torch.equal(entry[-1], entry[-2]) == facts["start_row_equals_end_row"]
    torch.testing.assert_close(entry[-1], entry[:-2].mean(0), rtol=1e-4, atol=1e-6)
    assert (entry.requires_grad, output.requires_grad) == (facts["in_requires_grad"], facts["out_requires_grad"])


def test_patch_token_only(base: tuple[Any, Any]) -> None:
    tokenizer, model = base
    facts = RECORDED["initialize_vision_tokenizer_patch_only"]
    model.initialize_vision_tokenizer(flags(mm_use_im_patch_token=True, tune_mm_mlp_adapter=True), tokenizer)
    entry, output = tables(model)
    assert len(tokenizer) == facts["len_tokenizer"]
    assert (entry.requires_grad, output.requires_grad) == (facts["in_requires_grad"], facts["out_requires_grad"])


def test_rows_from_a_stage1_file(base: tuple[Any, Any], tmp_path: Any) -> None:
    """The two rows may come alone or at the end of a whole table; anything else is refused."""
    tokenizer, model = base
    rows = torch.randn(2, 64)
    for saved in (rows, torch.cat([torch.zeros(720, 64), rows])):
        path = tmp_path / "mm_projector.bin"
        torch.save({"model.embed_tokens.weight": saved}, path)
        fresh_tokenizer = load_tokenizer(BASE)
        model.initialize_vision_tokenizer(
            flags(mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(path)), fresh_tokenizer
        )
        assert torch.equal(tables(model)[0][-2:].detach(), rows)
    torch.save({"model.embed_tokens.weight": torch.zeros(5, 64)}, path)
    with pytest.raises(ValueError, match="Unexpected embed_tokens_weight shape"):
        model.initialize_vision_tokenizer(flags(mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(path)), tokenizer)


def test_padded_vocabularies_are_never_shrunk(base: tuple[Any, Any]) -> None:
    tokenizer, model = base
    model.resize_token_embeddings(768)
    model.initialize_vision_tokenizer(flags(mm_use_im_patch_token=True), tokenizer)
    assert tables(model)[0].shape[0] == 768


def test_lora_targets(base: tuple[Any, Any]) -> None:
    assert find_all_linear_names(base[1]) == RECORDED["find_all_linear_names"]
