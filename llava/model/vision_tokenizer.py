"""Extra tokens around an image, and the embedding rows that they need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.weights import load_weights_only


@contextmanager
def gathered(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Gather the parameters under ZeRO-3; changes are written back from rank 0."""
    if any(hasattr(p, "ds_id") for p in parameters):
        from deepspeed import zero

        with zero.GatheredParameters(parameters, modifier_rank=0):
            yield
    else:
        yield


def grow_embeddings(model: Any, num_tokens: int, num_new: int) -> None:
    """Make room for `num_tokens` and set the last `num_new` rows of both tables to the mean of the rows before them.

    Tables are never shrunk: some vocabularies are padded on purpose.
    """
    if num_tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    if num_new == 0:
        return
    tables = [model.get_input_embeddings().weight]
    if model.get_output_embeddings() is not None:
        tables.append(model.get_output_embeddings().weight)
    with gathered(tables), torch.no_grad():
        for table in tables:
            first = num_tokens - num_new
            table[first:num_tokens] = table[:first].mean(dim=0, keepdim=True)


def add_image_tokens(model: Any, model_args: Any, tokenizer: Any) -> None:
    """Add `<im_patch>`, `<im_start>`, `<im_end>` as asked, grow the tables, and set which of them train.

    Raises:
        ValueError: the stage-1 file holds an embedding table of an unexpected shape.
    """
    if model_args.mm_use_im_patch_token:
        num_new = tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
        grow_embeddings(model, len(tokenizer), num_new)

    tune_adapter = getattr(model_args, "tune_mm_mlp_adapter", False)
    if model_args.mm_use_im_start_end:
        num_new = tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
        grow_embeddings(model, len(tokenizer), num_new)
        if tune_adapter:
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(False)
        adapter = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        if adapter and num_new:
            _copy_embedding_rows(model, adapter, len(tokenizer), num_new)
    elif model_args.mm_use_im_patch_token and tune_adapter:
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)


def _copy_embedding_rows(model: Any, path: str, num_tokens: int, num_new: int) -> None:
    key = "model.embed_tokens.weight"
    saved = load_weights_only(path).get(key)
    if saved is None:
        raise ValueError(f"{path} has no {key}: it was not trained with mm_use_im_start_end")
    table = model.get_input_embeddings().weight
    with gathered([table]), torch.no_grad():
        if saved.shape != table.shape and saved.shape[0] not in (num_new, num_tokens):
            raise ValueError(
                f"Unexpected embed_tokens_weight shape in {path}. Pretrained: {tuple(saved.shape)}. "
                f"Current: {tuple(table.shape)}. Number of new tokens: {num_new}."
            )
        table[num_tokens - num_new : num_tokens] = saved[-num_new:].to(table)
