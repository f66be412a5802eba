"""One reply from a LLaVA model: where it runs, how pictures reach it, how token ids become text.

Shared by the command line chat and the answer generators (contract: eval.md 1, serve.md 8).
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any, Union

from llava.image_utils import process_images
from llava.program import RequestError

if TYPE_CHECKING:  # programs import this module for its flags, and must answer --help without loading torch
    import torch
    from PIL import Image
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Images = Union["torch.Tensor", list["torch.Tensor"]]


def inference_options(device: str = "cuda") -> dict[str, Any]:
    """Options for `load_pretrained_model` that suit this machine.

    On a CPU the model runs in float32, where float16 is slow and coarse. CUDA falls back to the CPU where there is
    none, and says so.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("This machine has no CUDA device: the model runs on the CPU, in float32.")
        device = "cpu"
    if device == "cpu":
        return {"device": device, "dtype": torch.float32}
    return {"device": device}


def add_connector_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that open a checkpoint with another budget or connector, spelt as in training."""
    parser.add_argument(
        *("--mm_num_visual_tokens", "--mm-num-visual-tokens"),
        type=int,
        default=None,
        help="visual tokens per picture instead of the checkpoint's; not for learned queries (perceiver)",
    )
    parser.add_argument(
        *("--mm_projector_type", "--mm-projector-type"),
        type=str,
        default=None,
        help="open with another connector, without training: top_p, evit, pooling or visionzip on an MLP checkpoint",
    )


def connector_overrides(args: Any) -> dict[str, Any]:
    """What was given of the flags of `add_connector_arguments`, for `load_pretrained_model`."""
    values = {name: getattr(args, name, None) for name in ("mm_num_visual_tokens", "mm_projector_type")}
    return {name: value for name, value in values.items() if value is not None}


def prepare_images(
    pictures: list[Image.Image], image_processor: Any, config: Any
) -> tuple[Images, list[tuple[int, int]]]:
    """Pictures as the tower wants them, and their sizes (width, height).

    Raises:
        RequestError: there is no image processor: the model takes no pictures.
    """
    if image_processor is None:
        raise RequestError("this is a plain language model, without a vision tower: it cannot take pictures")
    return process_images(pictures, image_processor, config), [picture.size for picture in pictures]


def place_images(images: Images | None, model: PreTrainedModel) -> Images | None:
    """Pixel values on the model's device and in its dtype."""
    if images is None:
        return None
    if isinstance(images, list):
        return [image.to(model.device, model.dtype) for image in images]
    return images.to(model.device, model.dtype)


def generate_reply(model: PreTrainedModel, tokenizer: Any, input_ids: torch.Tensor, *args: Any, **options: Any) -> str:
    """`generate_replies` for one prompt, `input_ids` `[1, n]`."""
    return generate_replies(model, tokenizer, input_ids, *args, **options)[0]


def generate_replies(
    model: PreTrainedModel,
    tokenizer: Any,
    input_ids: torch.Tensor,
    images: Images | None = None,
    image_sizes: list[tuple[int, int]] | None = None,
    temperature: float = 0.2,
    **options: Any,
) -> list[str]:
    """The reply to each prompt as plain text: no special tokens, no space around it.

    Args:
        input_ids: `[B, n]`, IMAGE_TOKEN_INDEX where a picture goes.
        images: pixel values, see `prepare_images`; None for text-only prompts.
        temperature: 0 decodes greedily (or with beams), more samples.
        options: for `generate`: `attention_mask` of padded prompts, `max_new_tokens`, `num_beams`, `top_p`, ...
    """
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    if temperature <= 0:
        options.pop("top_p", None)  # means nothing then, and transformers would say so
    # Without a padding token transformers picks the end token too, but with a message for every reply.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    new_ids = model.generate(
        input_ids.to(model.device),
        images=place_images(images, model),
        image_sizes=image_sizes,
        use_cache=True,
        pad_token_id=pad,
        **sampling,
        **options,
    )
    return [text.strip() for text in tokenizer.batch_decode(new_ids, skip_special_tokens=True)]
