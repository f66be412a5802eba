"""Liger's kernels (arXiv 2410.10989) in the decoder: rotary embedding, RMSNorm and SwiGLU."""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import MistralForCausalLM

logger = logging.getLogger(__name__)

# Liger's fused loss would replace `forward`, and with it the images.
KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger_kernels(model: Any, args: Any) -> None:
    """Let the decoder of a LLaVA model use Liger's kernels if --use_liger_kernel asks for them.

    transformers chooses the kernels by the model type and knows no LLaVA; it is left to do so for other models. Without
    a GPU or the package, one warning says what is missing, and training goes on without the kernels.
    """
    if not args.use_liger_kernel:
        return
    missing = [] if torch.cuda.is_available() else ["a GPU"]
    missing += [] if find_spec("liger_kernel") else ["liger-kernel (pip install liger-kernel)"]
    if missing:
        logger.warning("--use_liger_kernel needs %s; training without it.", " and ".join(missing))
        args.use_liger_kernel = False
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base, "get_vision_tower"):
        return
    from liger_kernel import transformers as liger

    if isinstance(base, MistralForCausalLM):
        liger.apply_liger_kernel_to_mistral(**KERNELS, model=base)
    else:
        liger.apply_liger_kernel_to_llama(**KERNELS, model=base)
    args.use_liger_kernel = False  # done; transformers would only say that it knows no such model
    logger.info("Liger's kernels are in use: rotary embedding, RMSNorm, SwiGLU.")
