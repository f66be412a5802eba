"""Save a tokenizer so that old readers (transformers 4, LLaVA) and new ones load the same one.

transformers 5 writes `tokenizer.json` alone: without `tokenizer.model` the slow tokenizer of old readers has nothing to
read, and without the `legacy` key readers assume a value that differs from training.
"""

import json
import os
import shutil
from typing import Any

from llava.files import write_atomically, write_text_atomically

SENTENCEPIECE_FILE = "tokenizer.model"


def save_tokenizer(tokenizer: Any, folder: str) -> None:
    """Write all tokenizer files to `folder`, in the old and the new layout."""
    tokenizer.save_pretrained(folder)
    source = getattr(tokenizer, "vocab_file", None)
    if source is None or not os.path.isfile(source) or not hasattr(tokenizer, "legacy"):
        return  # not a Llama tokenizer: tokenizer.json is all there is
    target = os.path.join(folder, SENTENCEPIECE_FILE)
    if not (os.path.exists(target) and os.path.samefile(source, target)):
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))

    added = dict(sorted(tokenizer.added_tokens_decoder.items()))
    config_path = os.path.join(folder, "tokenizer_config.json")
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    config |= {
        "added_tokens_decoder": {
            str(token_id): {**_as_dict(token), "special": token.special} for token_id, token in added.items()
        },
        "add_bos_token": bool(tokenizer.add_bos_token),
        "add_eos_token": bool(tokenizer.add_eos_token),
        "legacy": bool(tokenizer.legacy),
    }
    _write_json(config_path, config)
    _write_json(os.path.join(folder, "special_tokens_map.json"), tokenizer.special_tokens_map)

    base_size = _sentencepiece_size(source)
    extra = {token.content: token_id for token_id, token in added.items() if token_id >= base_size}
    if extra:
        _write_json(os.path.join(folder, "added_tokens.json"), extra)


def _sentencepiece_size(source: str) -> int:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=source).get_piece_size()


def _as_dict(token: Any) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word")
    return {name: getattr(token, name) for name in names}


def _write_json(path: str, content: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
