"""Tokenization with the ids that released checkpoints were trained with.

LLaVA's checkpoints saw the *slow* sentencepiece tokenizer of transformers 4. Since transformers 5 ``LlamaTokenizer`` is
always the Rust one, and it gives a text that begins with a space one ``▁`` too few. The rule that repairs this lives
in one place, ``_extra_spaces``; inference and training both use it. See docs/compatibility.md.
"""

import re
from typing import TYPE_CHECKING, Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_SPACES = (" ", "▁")  # sentencepiece reads both as its space piece


def load_tokenizer(path: str, **kwargs: Any) -> "PreTrainedTokenizerBase":
    """``AutoTokenizer.from_pretrained`` with the defaults of transformers 4, which checkpoints rely on.

    A Llama folder that does not say ``legacy`` means ``legacy=True`` (transformers 5 reads False), and one that does
    not say ``padding_side`` pads on the right (transformers 5: left). ``kwargs`` win over both.
    """
    from transformers import AutoTokenizer, LlamaTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    hub_keys = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")
    stored = get_tokenizer_config(path, **{key: kwargs[key] for key in hub_keys if key in kwargs})
    # By its own class where the folder names it: for the model types llava and mistral AutoTokenizer does not believe
    # the folder and takes a tokenizer without the space pieces.
    is_llama = stored.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast")
    loader = LlamaTokenizer if is_llama else AutoTokenizer
    tokenizer = loader.from_pretrained(path, **kwargs)
    if hasattr(tokenizer, "legacy") and "legacy" not in stored and "legacy" not in kwargs:
        tokenizer = loader.from_pretrained(path, legacy=True, **kwargs)
    if "padding_side" not in stored and "padding_side" not in kwargs:
        tokenizer.padding_side = "right"
    return tokenizer


def tokenize_text(text: str, tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text without images (``<image>`` is ordinary text here). Nothing is cut off."""
    text, _ = _extra_spaces(text, tokenizer)
    return tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids


def tokenize_with_starts(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """``tokenize_text`` and, for every token, the index of the character of ``text`` at which it starts.

    A token added by the tokenizer itself (BOS) starts at -1.

    Raises:
        ValueError: the tokenizer cannot tell positions (it is not a Rust tokenizer).
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not report character positions, which label masking needs; "
            "use a tokenizer folder that loads as a fast tokenizer."
        )
    spaced, inserted = _extra_spaces(text, tokenizer)
    encoded = tokenizer(spaced, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids, starts = encoded.input_ids, []
    for i, (start, end) in enumerate(encoded.offset_mapping):
        is_added = start == end and encoded.special_tokens_mask[i]
        starts.append(-1 if is_added else start - sum(position < start for position in inserted))
    return ids, starts


def tokenizer_image_token(
    prompt: str,
    tokenizer: "PreTrainedTokenizerBase",
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> "list[int] | torch.Tensor":
    """Token ids of a prompt in which every ``<image>`` becomes ``image_token_index``.

    The pieces between the markers are tokenized one by one, so sentencepiece puts its space piece on both sides of a
    marker: released weights were trained with that.

    Returns:
        A list of ids, or a 1-D LongTensor for ``return_tensors="pt"``.

    Raises:
        ValueError: any other ``return_tensors``.
    """
    pieces = [tokenize_text(piece, tokenizer) for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    ids = _join_pieces(pieces, image_token_index, _leading_bos(pieces[0], tokenizer))
    if return_tensors is None:
        return ids
    if return_tensors == "pt":
        import torch

        return torch.tensor(ids, dtype=torch.long)
    raise ValueError(f"Unsupported tensor type: {return_tensors}. Use 'pt', or None for a list.")


def tokenize_image_with_starts(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """``tokenizer_image_token`` and the character index at which each token starts (see ``tokenize_with_starts``)."""
    pieces, starts, marks = [], [], []
    position = 0
    for piece in prompt.split(DEFAULT_IMAGE_TOKEN):
        ids, piece_starts = tokenize_with_starts(piece, tokenizer)
        pieces.append(ids)
        starts.append([start if start < 0 else start + position for start in piece_starts])
        marks.append(position + len(piece))  # where the marker after this piece stands
        position += len(piece) + len(DEFAULT_IMAGE_TOKEN)
    bos = _leading_bos(pieces[0], tokenizer)
    joined = starts[0]
    for mark, piece_starts in zip(marks, starts[1:], strict=False):
        joined = [*joined, mark, *piece_starts[bos:]]
    return _join_pieces(pieces, IMAGE_TOKEN_INDEX, bos), joined


def _leading_bos(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> int:
    """1 if the ids begin with the tokenizer's BOS, which then opens every piece, else 0."""
    return int(bool(ids) and ids[0] == tokenizer.bos_token_id)


def _join_pieces(pieces: list[list[int]], image_token_index: int, bos: int) -> list[int]:
    """Pieces with one image index between neighbours; only the first keeps its BOS."""
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids += [image_token_index, *piece[bos:]]
    return ids


def _extra_spaces(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[int]]:
    """The text with the spaces that make a Rust Llama tokenizer agree with the slow one, and where they were put.

    The slow tokenizer *adds* a space piece in front of a text, whatever it begins with; the Rust one (``Metaspace``)
    adds it only when the text does not begin with a space already. So one more space is written there. A legacy
    tokenizer does this for every stretch of text between added tokens, the others only at the very beginning.
    """
    scheme = _prepend_scheme(tokenizer)
    if scheme == "first":
        borders = [0]
    elif scheme == "always":
        borders = [0, *_ends_of_added_tokens(text, tokenizer)]
    else:
        return text, []
    inserted = []
    for border in borders:
        if text.startswith(_SPACES, border + len(inserted)):
            position = border + len(inserted)
            text = f"{text[:position]} {text[position:]}"
            inserted.append(position)
    return text, inserted


def _prepend_scheme(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """``first`` or ``always`` for sentencepiece-like Rust tokenizers, None for the rest (byte-level BPE, slow ones)."""
    if not tokenizer.is_fast:
        return None
    from tokenizers.pre_tokenizers import Metaspace

    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    return pre_tokenizer.prepend_scheme if isinstance(pre_tokenizer, Metaspace) else None


def _ends_of_added_tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Character positions right behind every added token (``</s>``, ``<im_end>``, ...) in the text."""
    names = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    if not names:
        return []
    return [match.end() for match in re.finditer("|".join(map(re.escape, names)), text)]
