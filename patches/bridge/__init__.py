"""Vision-language connectors in a LLaVA code base: what the inserted blocks call.

`patches.graft` copies this folder and the connectors into `<package>/model/llava_connectors`, and inserts one short
block at each place that uses them. The code base keeps its own model classes, vision tower and scripts. A model whose
`mm_projector_type` is one of the code base's own types runs exactly as before.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  other code bases may run on an older one
    raise ImportError("The LLaVA connectors need Python 3.10 or newer; `python -m patches.graft --revert` removes them")

from .calls import carry_weights
from .encoding import encode_images
from .factory import build_connector, with_connector_flags, write_settings
from .image_weights import assemble_inputs

__all__ = [
    "assemble_inputs",
    "build_connector",
    "carry_weights",
    "encode_images",
    "with_connector_flags",
    "write_settings",
]
