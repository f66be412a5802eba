"""Train the playground's tokenizer: a real Llama sentencepiece model (BPE with byte fallback) over a small language.

As in Llama's own vocabulary, `USER` is one piece without a leading space and two with it, and the words that open a
question exist in both forms (a question after the image follows a line break, one in a later turn a space).
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import sentencepiece

from ..files import write_bytes, write_json
from .language import (
    DESCRIBE,
    FACTS,
    READING,
    SYSTEM_PROMPT,
    ask_many,
    caption,
    describe,
    vocabulary,
)
from .scene import sample_scene

VOCAB_SIZE = 570
MAX_LENGTH = 2048
OPENERS = ("What", "How", "Where", "Is", "Describe", "There", "USER")


def corpus(seed: int = 0) -> list[str]:
    """Sentences the merges are learned from."""
    rng = random.Random(seed)
    lines = [SYSTEM_PROMPT] * 40
    for question, answer in FACTS:
        lines += [f"{question} ASSISTANT: {answer}"] * 10
    lines += [DESCRIBE, READING] * 20
    # The bracket keeps a word from taking the space in front of it: `(What` gives the piece without `▁`.
    lines += [" ".join(f"({word}" for word in OPENERS)] * 200
    lines += [" ".join(vocabulary())] * 200
    for _ in range(400):
        scene = sample_scene(rng)
        lines.append(f"{caption(scene)} {describe(scene, rng, any_order=True)}")
        lines += [f"{q.text} ASSISTANT: {q.answer}" for q in ask_many(scene, rng, 8)]
    return lines


def train_tokenizer(folder: Path) -> None:
    """Write `tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json` into `folder`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=False,  # so that a count is one piece, like every other answer
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "tokenizer.model", model.getvalue())
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", specials)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        "sp_model_kwargs": {},
        **specials,
    }
    write_json(folder / "tokenizer_config.json", config)


def load_pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece model itself, for fast encoding during pre-training."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
