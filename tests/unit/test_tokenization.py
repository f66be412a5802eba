"""Our ids against the rule of the slow sentencepiece tokenizer, written out with the sentencepiece library."""

import random
import re
from pathlib import Path

import pytest

from llava.tokenization import load_tokenizer, tokenize_image_with_starts, tokenize_text, tokenize_with_starts
from tests.conftest import VECTORS as TEST_VECTORS

ASSETS = TEST_VECTORS / "llava" / "assets"
LLAMAS = ["tokenizer-llama", "tokenizer-llama-legacy", "tokenizer-llama-chatml", "tokenizer-llama-legacy-chatml"]


def slow_ids(text: str, tokenizer, folder: Path) -> list[int]:
    """What LlamaTokenizer(use_fast=False) of transformers 4.37 gave: split at added tokens, encode each stretch."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    pattern = "|".join(re.escape(name) for name in sorted(added, key=len, reverse=True))
    ids = [tokenizer.bos_token_id]
    for i, stretch in enumerate(re.split(f"({pattern})", text)):
        if stretch in added:
            ids.append(added[stretch])
        elif stretch:
            prefix = " " if tokenizer.legacy or i == 0 else ""
            ids += model.encode(prefix + stretch)
    return ids


@pytest.mark.parametrize("name", LLAMAS)
def test_random_texts_equal_the_slow_tokenizer(name: str) -> None:
    tokenizer = load_tokenizer(str(ASSETS / name))
    pieces = [" ", "  ", "\n", "a", "the", "▁", "USER", ":", "</s>", "<s>", "<unk>", "<|im_end|>", "é", "你", "#", "1"]
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        assert tokenize_text(text, tokenizer) == slow_ids(text, tokenizer, ASSETS / name), repr(text)


@pytest.mark.parametrize("name", [*LLAMAS, "tokenizer-mpt"])
def test_starts_point_at_the_characters_of_the_token(name: str) -> None:
    tokenizer = load_tokenizer(str(ASSETS / name))
    text = " two  words</s> more\n<s>x<|im_end|> y"
    ids, starts = tokenize_with_starts(text, tokenizer)
    assert ids == tokenize_text(text, tokenizer)
    assert len(ids) == len(starts)
    assert starts == sorted(starts)
    for token in ("</s>", "<|im_end|>"):
        index = tokenizer.get_vocab().get(token)
        if index in ids:
            assert starts[ids.index(index)] == text.index(token)


def test_starts_across_images_count_the_marker() -> None:
    tokenizer = load_tokenizer(str(ASSETS / "tokenizer-llama"))
    prompt = "a <image> b<image>\n"
    ids, starts = tokenize_image_with_starts(prompt, tokenizer)
    assert starts[0] == -1  # BOS
    assert [start for i, start in zip(ids, starts) if i == -200] == [2, 11]
    assert starts[-1] == prompt.index("\n")


def test_a_folder_without_legacy_and_padding_side_means_what_it_meant(tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(ASSETS / "tokenizer-llama-legacy", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["legacy"], config["padding_side"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.legacy is True
    assert tokenizer.padding_side == "right"
    reference = load_tokenizer(str(ASSETS / "tokenizer-llama-legacy"))
    assert tokenize_text("x</s>USER: y", tokenizer) == tokenize_text("x</s>USER: y", reference)
    assert load_tokenizer(str(folder), legacy=False, padding_side="left").padding_side == "left"


def test_byte_level_bpe_is_left_alone() -> None:
    tokenizer = load_tokenizer(str(ASSETS / "tokenizer-mpt"))
    for text in ("", " a", "</s> a", "  x <|im_end|> y"):
        assert tokenize_text(text, tokenizer) == tokenizer(text).input_ids
