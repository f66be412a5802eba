"""What follows from a model's name: its name in answers files, and the template of a pre-trained-only model."""

import logging
import os

from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path
from llava.program import RequestError

logger = logging.getLogger(__name__)


def model_name(model_path: str) -> str:
    """Return the name of a model in answers files; `~` is expanded.

    Raises:
        RequestError: the path is a `checkpoint-*` without a parent folder.
    """
    try:
        return get_model_name_from_path(os.path.expanduser(model_path))
    except IndexError as error:
        raise RequestError(str(error)) from error


def template_for(model_name: str, conv_mode: str) -> str:
    """Return `conv_mode`, or its `mmtag` variant for a "plain" model, which was trained on captions only.

    Upstream appends `_mmtag` even if there is no such template; here a mode without that variant is kept.
    """
    if "plain" not in model_name or "finetune" in model_name or "mmtag" in conv_mode:
        return conv_mode
    short = conv_mode.removeprefix("vicuna_").removeprefix("llava_")
    tagged = next((name for name in (f"{conv_mode}_mmtag", f"{short}_mmtag") if name in conv_templates), conv_mode)
    if tagged != conv_mode:
        logger.warning("%s looks like a plain (pre-trained only) model: --conv-mode becomes %s.", model_name, tagged)
    return tagged
