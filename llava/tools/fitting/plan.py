"""Everything that follows from a run's flags: memory, arithmetic, time."""

import math
import os
from argparse import Namespace
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch

from llava.program import RequestError
from llava.tools.connector_costs import Shapes
from llava.tools.fitting.arithmetic import Rows, StepFlops, lora_parameters, step_flops
from llava.tools.fitting.decoder import DecoderMemory, LoraShape
from llava.tools.fitting.flags import parse_flags
from llava.tools.fitting.launch import Launch, record_launch
from llava.tools.fitting.memory import StepMemory, mask_bytes, step_memory
from llava.tools.fitting.model import MetaModel, build_meta_model
from llava.tools.fitting.parameters import count_parameters
from llava.tools.fitting.states import Engine, Parameters, ZeroConfig
from llava.tools.fitting.workload import Batching, TextLengths, Workload, count_records
from llava.tools.flops import GENERATOR

GIB = 2**30
# Median and spread of text tokens: captions, and instruction data.
STAGE1_TEXT = (32, 0.35)
STAGE2_TEXT = (180, 0.8)
MAX_VIEWS = 5  # anyres: four crops and the whole image
_NF4_BYTES = {True: 0.5 + 0.127 / 8, False: 0.5 + 4 / 64}  # with the constants of blocks, quantised or not


@dataclass(frozen=True)
class Assumptions:
    """What the flags of a run do not say.

    Attributes:
        gpu_memory, reserve: GiB of a device, and of it what CUDA, NCCL and the allocator's gaps take.
        peak_tflops: dense, in the run's precision, of one device.
        mfu: share of it that is reached.
        median_text, text_spread: see `TextLengths`; None: by stage.
        records: of the data; None: counted.
    """

    gpus: int
    gpu_memory: float
    reserve: float
    peak_tflops: float
    mfu: float
    median_text: float | None = None
    text_spread: float | None = None
    records: int | None = None


@dataclass(frozen=True)
class Plan:
    """A training run before it starts."""

    flags: Namespace
    meta: MetaModel
    zero: ZeroConfig | None
    assumptions: Assumptions

    def changed(self, **flags: object) -> "Plan":
        """The same run with other flags (for those that do not change the model)."""
        values = copy(self.flags)
        for name, value in flags.items():
            setattr(values, name, value)
        return Plan(values, self.meta, self.zero, self.assumptions)

    @property
    def is_stage1(self) -> bool:
        return self.flags.tune_mm_mlp_adapter

    @property
    def value(self) -> int:
        """Bytes of an activation."""
        return 2 if self.flags.bf16 or self.flags.fp16 else 4

    @property
    def stage(self) -> str:
        if self.is_stage1:
            return "stage 1, the connector trains"
        if self.flags.lora_enable:
            return f"LoRA of rank {self.flags.lora_r} and the connector train"
        return "stage 2, connector and language model train"

    @cached_property
    def workload(self) -> Workload:
        """Positions and steps."""
        f, a = self.flags, self.assumptions
        median, spread = STAGE1_TEXT if self.is_stage1 else STAGE2_TEXT
        views = MAX_VIEWS if f.image_aspect_ratio == "anyres" else 1
        visual = views * self.meta.visual_tokens
        limit = max(f.model_max_length - visual, 1)
        text = TextLengths(a.median_text or median, spread if a.text_spread is None else a.text_spread, limit)
        pack_length = (f.packing_length or f.model_max_length) if f.packing else None
        batching = Batching(f.per_device_train_batch_size, a.gpus, f.gradient_accumulation_steps, pack_length)
        records = a.records or count_records(f.data_path) or 0
        return Workload(records, f.num_train_epochs, f.max_steps, visual, text, batching)

    @cached_property
    def parameters(self) -> Parameters:
        """What trains. Sets `requires_grad` on the meta model."""
        f, model = self.flags, self.meta.model
        trains_decoder = not (f.tune_mm_mlp_adapter or f.lora_enable)
        model.requires_grad_(trains_decoder)
        if f.freeze_backbone:
            model.model.requires_grad_(False)
        self.meta.tower.requires_grad_(False)
        self.meta.connector.requires_grad_(not f.freeze_mm_mlp_adapter)
        if f.tune_vision_tower:
            self.meta.tower.unfreeze()
        p = count_parameters(model, self.value if self.zero or self.value == 2 else 4)
        saved = 0.0
        if f.bits in (4, 8):
            per_weight = 1 if f.bits == 8 else _NF4_BYTES[bool(f.double_quant)]
            saved = self.meta.llm.layer_weights * (self.value - per_weight)
        adapters = lora_parameters(self.meta.llm, f.lora_r) if f.lora_enable else 0
        largest = max(p.largest, f.lora_r * self.meta.llm.intermediate_size) if adapters else p.largest
        return Parameters(p.trained + adapters, p.frozen, round(p.frozen_bytes - saved), largest, p.last, p.late)

    @cached_property
    def decoder(self) -> DecoderMemory:
        f = self.flags
        return DecoderMemory(
            llm=self.meta.llm,
            value=self.value,
            trains=not (f.tune_mm_mlp_adapter or f.lora_enable or f.freeze_backbone),
            recomputes=f.gradient_checkpointing,
            lora=LoraShape(f.lora_r, f.lora_dropout) if f.lora_enable else None,
            generator=self.meta.generator,
            packs=f.packing,
        )

    @cached_property
    def memory(self) -> StepMemory:
        """Of one device."""
        f, work, meta = self.flags, self.workload, self.meta
        states = Engine(self.assumptions.gpus, self.value == 2, self.zero, str(f.optim), meta.llm.hidden_size).states(
            self.parameters
        )
        rows, length = f.per_device_train_batch_size, work.longest_row
        views = MAX_VIEWS if f.image_aspect_ratio == "anyres" else 1
        images = rows * work.most_images_per_row * views
        dtype = torch.bfloat16 if self.value == 2 else torch.float32
        tower, connector = meta.trace(images, dtype)
        trained = [p for part in (meta.tower, meta.connector) for p in part.parameters() if p.requires_grad]
        pixels = images * 3 * meta.tower.config.image_size**2 * 4
        segments = work.most_images_per_row
        needs_mask = meta.connector.space == "parameter"
        mask = mask_bytes(rows * segments, length / segments, self.value) if needs_mask else 0
        return step_memory(
            states,
            self.decoder,
            connector,
            tower,
            positions=rows * length,
            images=images,
            own_gradients=self.value * sum(p.numel() for p in trained),
            chunked_loss=f.chunked_loss or f.packing,
            accumulates=f.gradient_accumulation_steps > 1,
            inputs=pixels + mask,
        )

    @cached_property
    def flops(self) -> StepFlops:
        """Of one optimizer step on one device."""
        f, work, meta = self.flags, self.workload, self.meta
        shapes = Shapes(meta.llm, meta.vision, meta.resampler, meta.generator or GENERATOR)
        select = meta.tower.select_layer
        labelled = work.images_per_row * work.text.mean if f.chunked_loss or f.packing else work.row_length
        rows = Rows(
            f.per_device_train_batch_size * f.gradient_accumulation_steps,
            work.row_length,
            work.images_per_row,
            min(labelled, work.row_length),
        )
        return step_flops(
            meta.model.config.mm_projector_type,
            shapes,
            self.decoder,
            rows,
            tokens=meta.connector.num_visual_tokens,
            blocks=select if select >= 0 else meta.vision.blocks + 1 + select,
            tower_trains=f.tune_vision_tower,
        )

    @property
    def seconds_per_step(self) -> float:
        a = self.assumptions
        return self.flops.total / (1e12 * a.peak_tflops * a.mfu)

    @property
    def hours(self) -> float:
        return self.workload.steps * self.seconds_per_step / 3600

    @property
    def needed(self) -> float:
        """Bytes of the device's memory, reserve included."""
        return self.memory.peak + self.assumptions.reserve * GIB

    @property
    def fits(self) -> bool:
        return self.needed <= self.assumptions.gpu_memory * GIB

    def remedy(self) -> str | None:
        """One change of flags that makes it fit; None if none of those tried does."""
        f = self.flags
        tries: list[tuple[str, Plan]] = []
        if not f.gradient_checkpointing:
            tries.append(("--gradient_checkpointing True", self.changed(gradient_checkpointing=True)))
        if not (f.chunked_loss or f.packing):
            tries.append(("--chunked_loss True", self.changed(chunked_loss=True)))
        if self.zero is not None and self.zero.stage < 3 and self.assumptions.gpus > 1:
            zero3 = Plan(f, self.meta, ZeroConfig(stage=3), self.assumptions)
            tries.append(("--deepspeed scripts/zero3.json", zero3))
        batch, accumulation = f.per_device_train_batch_size, f.gradient_accumulation_steps
        for halvings in range(1, int(math.log2(max(batch, 1))) + 1):
            smaller = {
                "per_device_train_batch_size": batch >> halvings,
                "gradient_accumulation_steps": accumulation << halvings,
            }
            tries.append((" ".join(f"--{key} {value}" for key, value in smaller.items()), self.changed(**smaller)))
        return next((change for change, plan in tries if plan.fits), None)


def read_zero(flags: Namespace) -> ZeroConfig | None:
    """The DeepSpeed file of the flags; None without one, or where it is missing (a check says so)."""
    path = flags.deepspeed
    return ZeroConfig.read(path) if isinstance(path, str) and os.path.isfile(path) else None


def plan_script(script: str, script_flags: list[str], assumptions: Assumptions) -> tuple[Launch, Plan]:
    """The command that a script starts, and its plan.

    Raises:
        RequestError: the script starts no training, or the training program would refuse its flags or the model.
        OSError: a configuration cannot be read.
    """
    launch = record_launch(script, script_flags)
    flags = parse_flags(launch.flags)
    try:
        meta = build_meta_model(flags)
    except (ValueError, NotImplementedError) as error:
        raise RequestError(str(error)) from error
    return launch, Plan(flags, meta, read_zero(flags), assumptions)
