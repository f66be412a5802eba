"""Masking rules where the recorded vectors do not reach: other vocabularies, borders, warnings."""

from types import SimpleNamespace

import pytest
import torch

from llava import conversation
from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.tokenization import load_tokenizer
from llava.train.preprocess import (
    padding_id,
    preprocess,
    preprocess_llama_2,
    preprocess_mpt,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
)
from tests.conftest import VECTORS as TEST_VECTORS

ASSETS = TEST_VECTORS / "llava" / "assets"
TALK = [
    {"from": "human", "value": "What is it?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes, a red cat."},
]


def tokenizer_named(name: str = "tokenizer-llama"):
    return load_tokenizer(str(ASSETS / name))


def learned_texts(result: dict, tokenizer, row: int = 0) -> list[str]:
    """The text of every unbroken run of labelled tokens."""
    runs: list[list[int]] = [[]]
    for label in result["labels"][row].tolist():
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run).strip() for run in runs if run]


@pytest.mark.parametrize(
    "name", ["tokenizer-llama", "tokenizer-llama-legacy", "tokenizer-mpt", "tokenizer-llama-chatml"]
)
@pytest.mark.parametrize("template", ["v1", "llava_v1", "llama_2", "mistral_instruct", "mpt", "chatml_direct"])
def test_answers_and_their_ends_are_learned_with_every_vocabulary(template: str, name: str) -> None:
    """LLaVA's lengths fit Llama vocabularies only."""
    tokenizer, conv = tokenizer_named(name), conv_templates[template]
    end = conv.sep if conv.version == "mpt" else conv.sep2
    texts = learned_texts(preprocess([TALK], tokenizer, conv=conv), tokenizer)
    assert [text.replace(" ", "") for text in texts] == [f"Acat.{end}", f"Yes,aredcat.{end}"]


@pytest.mark.parametrize("template", ["v1", "llama_2", "mpt"])
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(TALK[:3], id="question at the end"),
        pytest.param([TALK[0], {"from": "gpt", "value": ""}], id="empty answer"),
    ],
)
def test_broken_samples_are_not_learned(template: str, broken: list, capsys) -> None:
    result = preprocess([broken], tokenizer_named(), conv=conv_templates[template])
    assert set(result["labels"][0].tolist()) == {IGNORE_INDEX}
    assert "WARNING: tokenization mismatch: " in capsys.readouterr().out


def test_a_good_row_survives_a_broken_one_in_the_batch(capsys) -> None:
    tokenizer = tokenizer_named()
    result = preprocess([TALK, TALK[:3]], tokenizer, conv=conv_templates["v1"])
    assert result["input_ids"].shape == result["labels"].shape == (2, result["input_ids"].shape[1])
    assert len(learned_texts(result, tokenizer, 0)) == 2
    assert learned_texts(result, tokenizer, 1) == []


def test_plain_learns_the_caption() -> None:
    tokenizer = tokenizer_named()
    source = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": "a cat"}]
    result = preprocess([source], tokenizer, has_image=True, conv=conv_templates["plain"])
    ids, labels = result["input_ids"][0], result["labels"][0]
    assert ids[:2].tolist() == [tokenizer.bos_token_id, -200]
    assert labels.tolist() == [IGNORE_INDEX] * 2 + ids[2:].tolist()
    assert tokenizer.decode(ids[2:]).strip() == "a cat"
    for bad in ([source[0]], [{"from": "human", "value": "no image"}, source[1]]):
        with pytest.raises(AssertionError, match="--version"):
            preprocess_plain([bad], tokenizer, conv_templates["plain"])


def test_text_is_cut_and_images_are_not() -> None:
    tokenizer = load_tokenizer(str(ASSETS / "tokenizer-llama"), model_max_length=20)
    text = preprocess([TALK], tokenizer, conv=conv_templates["v1"])
    assert text["input_ids"].shape == text["labels"].shape == (1, 20)
    args = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)
    source = preprocess_multimodal([[{"from": "human", "value": "<image> hm"}, TALK[1]]], args)
    image = preprocess(source, tokenizer, has_image=True, conv=conv_templates["v1"])
    assert image["input_ids"].shape[1] > 20


def test_errors_name_the_turn() -> None:
    tokenizer, conv = tokenizer_named(), conv_templates["v1"]
    with pytest.raises(KeyError, match="'system'"):
        preprocess([[{"from": "system", "value": "x"}, *TALK]], tokenizer, conv=conv)
    with pytest.raises(AssertionError, match="conversation 1: turn 1"):
        preprocess([TALK, [TALK[0], TALK[0]]], tokenizer, conv=conv)


def test_upstream_signatures_use_the_process_wide_template(monkeypatch) -> None:
    tokenizer = tokenizer_named()
    for function, template in ((preprocess_v1, "v1"), (preprocess_llama_2, "llama_2"), (preprocess_mpt, "mpt")):
        monkeypatch.setattr(conversation, "default_conversation", conv_templates[template])
        direct, dispatched = function([TALK], tokenizer, False), preprocess([TALK], tokenizer, False)
        assert torch.equal(direct["labels"], dispatched["labels"])
        assert (direct["labels"] != IGNORE_INDEX).any()


def test_templates_stay_empty() -> None:
    preprocess([TALK], tokenizer_named(), conv=conv_templates["v1"])
    assert conv_templates["v1"].messages == []


def test_padding_id_without_special_tokens() -> None:
    assert padding_id(SimpleNamespace(pad_token_id=None, unk_token_id=None, eos_token_id=7)) == 7
    assert padding_id(SimpleNamespace(pad_token_id=0, unk_token_id=3, eos_token_id=7)) == 0
    assert padding_id(SimpleNamespace(pad_token_id=None, unk_token_id=None, eos_token_id=None)) == 0
