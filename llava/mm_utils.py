"""Images and prompts on their way to the model.

The work is done in ``llava.images``, ``llava.image_processing`` and ``llava.tokenization``; this module is their public
address, as in LLaVA.
"""

from typing import TYPE_CHECKING

from llava.image_processing import process_anyres_image, process_images
from llava.images import (
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    load_image_from_base64,
    resize_and_pad_image,
    select_best_resolution,
)
from llava.tokenization import tokenize_text, tokenizer_image_token

if TYPE_CHECKING:
    import torch

__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]


def get_model_name_from_path(model_path: str) -> str:
    """The last component of a path, with its parent in front for ``checkpoint-*`` folders.

    Raises:
        IndexError: a ``checkpoint-*`` path without a parent.
    """
    parts = model_path.strip("/").split("/")
    if not parts[-1].startswith("checkpoint-"):
        return parts[-1]
    if len(parts) < 2:
        raise IndexError(f"'{model_path}' has no parent folder to name the model after; give the longer path.")
    return f"{parts[-2]}_{parts[-1]}"


class KeywordsStoppingCriteria:
    """Ends generation when **every** row has produced one of the keywords. Goes into a ``StoppingCriteriaList``.

    A row has produced a keyword when its new tokens end with the keyword's ids, or when the keyword occurs in the
    text of its last new tokens (as many as the longest keyword has). The new tokens are what follows the prompt; when
    generation runs on embeddings there are no prompt ids in the output and all tokens are new.

    It is not a subclass of transformers' ``StoppingCriteria`` because importing that would load torch with this module;
    ``generate`` only needs something to call.
    """

    def __init__(self, keywords: list[str], tokenizer, input_ids: "torch.Tensor"):
        """
        Args:
            keywords: texts that end the answer.
            tokenizer: the model's tokenizer.
            input_ids: the prompt, ``[rows, n]``.
        """
        import torch

        self.keywords = keywords
        self.tokenizer = tokenizer
        self.input_ids = input_ids
        self.start_len = input_ids.shape[1]
        self.keyword_ids = []
        for keyword in keywords:
            ids = tokenize_text(keyword, tokenizer)
            if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
                ids = ids[1:]
            self.keyword_ids.append(torch.tensor(ids, dtype=torch.long))
        self.max_keyword_len = max((len(ids) for ids in self.keyword_ids), default=0)

    def __call__(self, output_ids: "torch.Tensor", scores=None, **kwargs) -> bool:
        """
        Args:
            output_ids: ``[rows, m]``, with or without the prompt in front.
            scores: not used.
        """
        new_ids = output_ids[:, self.start_len :] if self._holds_prompt(output_ids) else output_ids
        return all(self._row_stops(row.cpu()) for row in new_ids)

    def _holds_prompt(self, output_ids: "torch.Tensor") -> bool:
        if output_ids.shape[1] < self.start_len:
            return False
        prompts = self.input_ids.to(output_ids.device)
        heads = output_ids[:, : self.start_len]
        # [rows, 1, n] against [1, prompts, n]: beams repeat prompts, so any prompt may belong to any row
        return bool((heads[:, None] == prompts[None]).all(-1).any(-1).all())

    def _row_stops(self, new_ids: "torch.Tensor") -> bool:
        for ids in self.keyword_ids:
            if 0 < len(ids) <= len(new_ids) and bool((new_ids[-len(ids) :] == ids).all()):
                return True
        window = min(len(new_ids), self.max_keyword_len)
        if window == 0:
            return False
        text = self.tokenizer.decode(new_ids[-window:], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)
