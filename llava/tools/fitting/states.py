"""Weights, gradients and optimizer states of one device.

N parameters train, F do not, on W devices. In half precision DeepSpeed keeps, by ZeRO stage,

    stage   weights       gradients   masters and Adam   at the optimizer step
    0       2 N + 2 F     2 N         12 N               4 N
    1       2 N + 2 F     2 N         12 N / W           6 N / W
    2       2 N + 2 F     2 N / W     12 N / W           6 N / W
    3       2 (N + F)/W   2 N / W     12 N / W           6 min(N / W, sub-group)

At the step the device's part of the gradients is copied to float32, in stages 1 to 3 by way of one flat tensor. Stage 3
holds the gradients from the start, and gathered parameters, at most `stage3_max_live_parameters`. Stages 1 to 3 have
two buckets for gradients on their way, stage 0 one of half a billion values. Offloading moves optimizer states and
gradients, or the weights, to the host. Without DeepSpeed what trains is float32: 4 N, 4 N, 8 N, the buckets of several
devices another 4 N, and under autocast the copies in half precision 2 N.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from llava.program import RequestError

FLOAT32 = 4
ADAM_MOMENTS = 2
ALLREDUCE_BUCKET = 5 * 10**8  # values


@dataclass(frozen=True)
class ZeroConfig:
    """What a DeepSpeed file says about memory."""

    stage: int = 0
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    bucket: int | None = None  # values; None: hidden size squared, which is what transformers fills in
    live_parameters: int = 10**9
    sub_group: int = 10**9
    stored: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str) -> "ZeroConfig":
        """
        Raises:
            FileNotFoundError: there is no such file.
            RequestError: it is not JSON.
        """
        with open(path, encoding="utf-8") as file:
            try:
                stored = json.load(file)
            except json.JSONDecodeError as error:
                raise RequestError(f"--deepspeed {path} is not JSON: {error}") from error
        zero = stored.get("zero_optimization", {})

        def number(key: str, default: int | None) -> int | None:
            value = zero.get(key, default)
            return default if value == "auto" else None if value is None else int(value)

        return cls(
            stage=zero.get("stage", 0),
            offloads_optimizer=_is_offloaded(zero.get("offload_optimizer")),
            offloads_weights=_is_offloaded(zero.get("offload_param")),
            bucket=number("reduce_bucket_size", None),
            live_parameters=number("stage3_max_live_parameters", 10**9),
            sub_group=number("sub_group_size", 10**9),
            stored=stored,
        )


def _is_offloaded(section: Any) -> bool:
    return isinstance(section, dict) and section.get("device", "none") != "none"


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        trained: that train.
        frozen: that do not, those of a quantised model included.
        frozen_bytes: of the frozen ones, unpartitioned.
        largest: of the largest tensor that trains.
        last: that train and get their gradient first in the backward pass: logits, down projection of the last layer.
        late: that train and get theirs last: of the first layer all but the down projection, and embeddings.
    """

    trained: int
    frozen: int
    frozen_bytes: int
    largest: int = 0
    last: int = 0
    late: int = 0


@dataclass(frozen=True)
class States:
    """Bytes of one device.

    Attributes:
        weights, optimizer, buffers: there all the time.
        gradients: all of them, at the end of the backward pass.
        first_gradients: those that are there when the backward pass has reached the last layer.
        late_gradients: those that are not there yet when it is in the first layer.
        step: in addition during the optimizer step.
        host: on the host, because of offloading; of this device's part.
        holds_gradients: their memory is taken all the time.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    first_gradients: int
    late_gradients: int
    step: int
    host: int = 0
    holds_gradients: bool = False


@dataclass(frozen=True)
class Engine:
    """How the states are kept.

    Attributes:
        devices: W.
        half: trained in bf16 or fp16.
        zero: DeepSpeed's configuration; None without DeepSpeed.
        optimizer: name of --optim.
        hidden_size: of the language model, which settles automatic bucket sizes.
        step: temporaries of torch's optimizer: `foreach` (all parameters at once, on a GPU) or `loop` (a CPU).
    """

    devices: int
    half: bool
    zero: ZeroConfig | None
    optimizer: str
    hidden_size: int
    step: str = "foreach"

    def states(self, parameters: Parameters) -> States:
        """The states that these parameters need."""
        return self._plain(parameters) if self.zero is None else self._zero(parameters)

    def _moments(self, trained: int) -> int:
        """Bytes of the two moments, without masters."""
        if "8bit" in self.optimizer:
            return ADAM_MOMENTS * trained
        if "adafactor" in self.optimizer or "sgd" in self.optimizer:
            return 0
        return ADAM_MOMENTS * FLOAT32 * trained

    def _plain(self, p: Parameters) -> States:
        weights = FLOAT32 * p.trained + p.frozen_bytes
        gradients = FLOAT32 * p.trained
        buckets = FLOAT32 * p.trained if self.devices > 1 else 0
        casts = 2 * p.trained if self.half else 0
        step = 0
        if "fused" not in self.optimizer:
            step = FLOAT32 * (p.trained if self.step == "foreach" else 2 * p.largest)
        first, late = FLOAT32 * p.last, FLOAT32 * p.late
        return States(weights, gradients, self._moments(p.trained), buckets + casts, first, late, step)

    def _zero(self, p: Parameters) -> States:
        zero, value = self.zero, 2 if self.half else FLOAT32
        parts = self.devices if zero.stage >= 1 else 1
        gradient_parts = self.devices if zero.stage >= 2 else 1
        weights = value * p.trained + p.frozen_bytes
        buffers = 2 * value * (zero.bucket or self.hidden_size**2)
        if zero.stage == 0:
            buffers = value * min(p.trained, ALLREDUCE_BUCKET)
        if zero.stage >= 2:
            buffers += value * p.largest  # a gradient larger than the bucket travels alone
        host = 0
        if zero.stage == 3:
            buffers += value * min(zero.live_parameters, p.trained + p.frozen)
            weights //= self.devices
            if zero.offloads_weights:
                host, weights = host + weights, 0
        masters = FLOAT32 * p.trained if self.half else 0
        optimizer = (masters + self._moments(p.trained)) // parts
        gradients = value * p.trained // gradient_parts
        flat = value if zero.stage >= 1 else 0
        per_value = flat + (FLOAT32 if self.half else 0)
        step = per_value * min(p.trained // parts, zero.sub_group if zero.stage == 3 else p.trained)
        if zero.offloads_optimizer:
            host, optimizer, gradients, step = host + optimizer + gradients, 0, 0, 0
        share = gradients / max(p.trained, 1)
        return States(
            weights,
            gradients,
            optimizer,
            buffers,
            round(share * p.last),
            round(share * p.late),
            step,
            host,
            zero.stage == 3,
        )
