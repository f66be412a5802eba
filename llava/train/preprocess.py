"""Convert conversations to token ids and labels.

Every rule set selects the *characters* of the prompt that are learned. The labels follow from one tokenization of the
whole prompt, so that mask borders always match the tokens.

The template is the ``conv`` argument; without it, ``llava.conversation.default_conversation`` at the time of the call.
"""

from collections.abc import Sequence
from typing import Any

import torch

from llava import conversation as conversation_lib
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle
from llava.tokenization import tokenize_image_with_starts, tokenize_with_starts

Source = Sequence[dict[str, str]]  # one conversation: [{"from": "human", "value": "..."}, ...]
Span = tuple[int, int]  # characters [start, end) of a prompt
Tokenized = dict[str, Any]  # "input_ids" and "labels": a LongTensor [rows, n], or a list of 1-D LongTensors


def preprocess(sources: Sequence[Source], tokenizer, has_image: bool = False, conv: Conversation | None = None):
    """Ids and labels of some conversations by the rule set of the template.

    Args:
        sources: conversations; with images they went through ``preprocess_multimodal`` first.
        has_image: ``<image>`` marks an image and nothing is cut off. Otherwise it is ordinary text, and the ids
            are cut at ``tokenizer.model_max_length``.

    Returns:
        ``input_ids`` and ``labels``, as ``[rows, n]`` tensors (``plain`` and ``###`` templates: lists of rows).

    Raises:
        AssertionError: turns out of order, or a sample that is no caption under the plain template.
        KeyError: a speaker other than ``human`` and ``gpt``.
        RuntimeError: conversations with images whose lengths differ; pass them one by one.
    """
    conv = _template(conv)
    if conv.sep_style == SeparatorStyle.PLAIN:
        return preprocess_plain(sources, tokenizer, conv)
    if conv.sep_style == SeparatorStyle.LLAMA_2:
        return preprocess_llama_2(sources, tokenizer, has_image, conv)
    if conv.version.startswith("v1"):
        return preprocess_v1(sources, tokenizer, has_image, conv)
    if conv.version == "mpt":
        return preprocess_mpt(sources, tokenizer, has_image, conv)
    return preprocess_v0(sources, tokenizer, has_image, conv)


def preprocess_multimodal(sources: Sequence[Source], data_args, conv: Conversation | None = None) -> list[Source]:
    """Bring the image marker to the front of its turn, in the spelling of the template.

    Turns without a marker stay as they are; the sources are not modified.
    """
    if not data_args.is_multimodal:
        return list(sources)
    marker = DEFAULT_IMAGE_TOKEN
    if data_args.mm_use_im_start_end:
        marker = DEFAULT_IM_START_TOKEN + marker + DEFAULT_IM_END_TOKEN
    if "mmtag" in _template(conv).version:
        marker = f"<Image>{marker}</Image>"

    def rewrite(value: str) -> str:
        if DEFAULT_IMAGE_TOKEN not in value:
            return value
        text = value.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return f"{marker}\n{text}".strip()

    return [[{**turn, "value": rewrite(turn["value"])} for turn in source] for source in sources]


def preprocess_v1(sources, tokenizer, has_image: bool = False, conv: Conversation | None = None) -> Tokenized:
    """``USER: ... ASSISTANT: ...</s>``: learned from behind ``ASSISTANT:`` through ``</s>``."""
    conv = _template(conv)
    return _preprocess_rounds(sources, tokenizer, has_image, conv, conv.sep2, f" {conv.roles[1]}: ")


def preprocess_llama_2(sources, tokenizer, has_image: bool = False, conv: Conversation | None = None) -> Tokenized:
    """``[INST] ... [/INST] ... </s>``: learned from behind ``[/INST]`` through ``</s>``."""
    conv = _template(conv)
    return _preprocess_rounds(sources, tokenizer, has_image, conv, conv.sep2, "[/INST] ")


def preprocess_mpt(sources, tokenizer, has_image: bool = False, conv: Conversation | None = None) -> Tokenized:
    """``<|im_start|>assistant\\n...<|im_end|>``: learned from behind the newline through ``<|im_end|>``."""
    conv = _template(conv)
    return _preprocess_rounds(sources, tokenizer, has_image, conv, conv.sep, conv.roles[1], parts=(3, 2))


def preprocess_plain(sources, tokenizer, conv: Conversation | None = None) -> Tokenized:
    """An image and its caption: the question's text is dropped, everything behind the image is learned."""
    conv = _template(conv)
    rows = []
    for source in sources:
        if len(source) != 2 or DEFAULT_IMAGE_TOKEN not in source[0]["value"]:
            raise AssertionError(
                f"The plain template takes captions: two turns, {DEFAULT_IMAGE_TOKEN} in the first, not {len(source)} "
                "turns or plain text. Use another --version for conversations and text."
            )
        text = DEFAULT_IMAGE_TOKEN + source[1]["value"] + conv.sep
        ids, starts = tokenize_image_with_starts(text, tokenizer)
        rows.append((ids, _labels(ids, starts, [(len(DEFAULT_IMAGE_TOKEN), len(text))])))
    return _as_lists(rows)


def preprocess_v0(sources, tokenizer, has_image: bool = False, conv: Conversation | None = None) -> Tokenized:
    """The ``###`` format: everything but the header and the human turns is learned (7.5).

    Of a human turn the first two tokens are learned: in Llama's vocabulary they are the ``##`` and ``#`` that tell
    the model to end its answer.
    """
    conv = _template(conv)
    names = {"human": conv.roles[0], "gpt": conv.roles[1]}
    rows = []
    for source in sources:
        text, learned, human = f"{conv.system}\n\n", [], []
        for turn in source:
            speaker = turn["from"].lower()
            start = len(text)
            text += f"### {names.get(speaker, 'unknown')}: {turn['value']}\n"
            (human if speaker == "human" else learned).append((start, len(text)))
        learned.append((len(text), len(text) + len("### ")))
        ids, starts = _tokenize(text + "### ", tokenizer, has_image)
        labels = _labels(ids, starts, learned)
        for span_start, span_end in human:
            first_two = [i for i, start in enumerate(starts) if span_start <= start < span_end][:2]
            for i in first_two:
                labels[i] = ids[i]
        limit = None if has_image else tokenizer.model_max_length
        rows.append((ids[:limit], labels[:limit]))
    return _as_lists(rows)


def _template(conv: Conversation | None) -> Conversation:
    return conversation_lib.default_conversation if conv is None else conv


def _preprocess_rounds(
    sources, tokenizer, has_image: bool, conv: Conversation, separator: str, mark: str, parts: Span = (1, 1)
) -> Tokenized:
    """Templates made of rounds (question and answer), each closed by ``separator``.

    Args:
        separator: closes a round, or one of its ``parts``.
        mark: stands between question and answer; a space at its end belongs to the answer.
        parts: how often ``separator`` occurs in the first round and in the later ones.
    """
    rows = []
    for index, source in enumerate(sources):
        text = _render(source, conv, index)
        ids, starts = _tokenize(text, tokenizer, has_image)
        spans, sound_end = _find_answers(text, separator, mark, parts)
        labels = _labels(ids, starts, spans)
        limit = None if has_image else tokenizer.model_max_length
        ids, labels = ids[:limit], labels[:limit]
        # A sample that does not fall into rounds (a trailing question, an empty answer, a separator inside a turn) is
        # not learned at all, as upstream; beyond model_max_length upstream does not look, and neither do we.
        sound_tokens = sum(start < sound_end for start in starts)
        if sound_end < len(text) and sound_tokens < tokenizer.model_max_length:
            labels = [IGNORE_INDEX] * len(ids)
            print(f"WARNING: tokenization mismatch: {sound_tokens} vs. {len(ids)}. (ignored)")
        rows.append((ids, labels))
    return _stack(rows) if has_image else _pad(rows, tokenizer)


def _render(source: Source, conv: Conversation, index: int) -> str:
    """The prompt of a conversation; an opening answer without a question is dropped."""
    roles = {"human": conv.roles[0], "gpt": conv.roles[1]}
    for turn in source:
        if turn["from"] not in roles:
            raise KeyError(f"unknown speaker {turn['from']!r} in conversation {index}: use 'human' or 'gpt'")
    if source and source[0]["from"] != "human":
        source = source[1:]
    conv = conv.copy()
    conv.messages = []
    for i, turn in enumerate(source):
        role = roles[turn["from"]]
        if role != conv.roles[i % 2]:
            raise AssertionError(
                f"conversation {index}: turn {i} is {turn['from']}'s; 'human' and 'gpt' must alternate"
            )
        conv.append_message(role, turn["value"])
    return conv.get_prompt()


def _find_answers(text: str, separator: str, mark: str, parts: Span) -> tuple[list[Span], int]:
    """Character spans of the answers with their separators, and where the last sound round ends."""
    spans: list[Span] = []
    position = 0
    while position < len(text):
        end = position
        for _ in range(parts[bool(spans)]):
            found = text.find(separator, end)
            if found < 0:
                return spans, position
            end = found + len(separator)
        if text.count(mark, position, end) != 1:
            break
        spans.append((text.index(mark, position) + len(mark.rstrip(" ")), end))
        position = end
    return spans, position


def _tokenize(text: str, tokenizer, has_image: bool) -> tuple[list[int], list[int]]:
    return tokenize_image_with_starts(text, tokenizer) if has_image else tokenize_with_starts(text, tokenizer)


def _labels(ids: list[int], starts: list[int], spans: list[Span]) -> list[int]:
    """The ids of the tokens that start inside a span, ``IGNORE_INDEX`` elsewhere."""
    labels = [IGNORE_INDEX] * len(ids)
    for i, start in enumerate(starts):
        if any(span_start <= start < span_end for span_start, span_end in spans):
            labels[i] = ids[i]
    return labels


def _as_lists(rows) -> Tokenized:
    return {
        "input_ids": [torch.tensor(ids, dtype=torch.long) for ids, _ in rows],
        "labels": [torch.tensor(labels, dtype=torch.long) for _, labels in rows],
    }


def _stack(rows) -> Tokenized:
    lengths = {len(ids) for ids, _ in rows}
    if len(lengths) > 1:
        raise RuntimeError(
            f"conversations with images must have equal lengths to be stacked, got {sorted(lengths)} tokens; "
            "preprocess them one by one, as LazySupervisedDataset does."
        )
    return {key: torch.stack(values) for key, values in _as_lists(rows).items()}


def _pad(rows, tokenizer) -> Tokenized:
    tensors = _as_lists(rows)
    return {
        "input_ids": pad_right(tensors["input_ids"], padding_id(tokenizer)),
        "labels": pad_right(tensors["labels"], IGNORE_INDEX),
    }


def padding_id(tokenizer) -> int:
    """The id for padding; any id works, because attention masks are built from lengths."""
    for index in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if index is not None:
            return index
    return 0


def pad_right(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """Stack 1-D tensors to one ``[rows, longest]`` tensor, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
