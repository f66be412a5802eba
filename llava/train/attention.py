"""The attention implementation for training."""

import logging

import torch
from transformers.utils import is_flash_attn_2_available

logger = logging.getLogger(__name__)


def fastest_attention() -> str:
    """`flash_attention_2` where it can run (Ampere or newer), else `sdpa` with a warning."""
    is_ampere = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if is_ampere and is_flash_attn_2_available():
        return "flash_attention_2"
    logger.warning("FlashAttention-2 is not available (pip install 'llava[flash]'); using torch's fused attention.")
    return "sdpa"
