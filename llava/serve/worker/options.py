"""How a worker with a model uses its machine, and which images it accepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava.serve.image_limits import ImageLimits


@dataclass(frozen=True)
class ServingOptions:
    """Options of a `ModelWorker` beyond upstream's.

    Attributes:
        max_rows: replies generated at once.
        max_waiting: requests that may wait; further ones are refused as busy.
        cache_gb: GiB for keys and values; None: by the free memory of the device.
        image_cache_gb: GiB for encoded images.
        prefill_chunk: prompt tokens processed between two tokens of the running replies; None: by the device.
        limits: on images.
        url_hosts: hosts from which images may be fetched that clients name.
        overrides: of the connector, for `load_pretrained_model`.
    """

    max_rows: int = 5
    max_waiting: int = 64
    cache_gb: float | None = None
    image_cache_gb: float = 0.25
    prefill_chunk: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    url_hosts: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
