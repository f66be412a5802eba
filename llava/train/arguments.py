"""Command-line flags of training, on the Trainer of transformers 5.

Flags that transformers dropped since 4.37 are still accepted: those with a successor are translated, the others
ignored with a warning.
"""

import functools
import logging
import os
import warnings
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import timedelta
from typing import Any

import torch
import transformers
from transformers.utils import is_torch_tf32_available

from llava.model.multimodal_encoder.s2 import S2_DEFAULT_SCALES
from llava.model.multimodal_projector.builder import known_projector_types
from llava.model.multimodal_projector.settings import setting_flags
from llava.train.planning import AVERAGES

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model and its connector."""

    model_name_or_path: str | None = field(
        default="facebook/opt-125m", metadata={"help": "Base LLM or LLaVA checkpoint."}
    )
    version: str | None = field(default="v0", metadata={"help": "Prompt format: a key of conv_templates."})
    freeze_backbone: bool = field(default=False, metadata={"help": "Freeze the language model."})
    tune_mm_mlp_adapter: bool = field(default=False, metadata={"help": "Train and save the connector only (stage 1)."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "CLIP folder or Hub name; without it a plain LLM is trained."}
    )
    mm_vision_select_layer: int | None = field(
        default=-1, metadata={"help": "Hidden state of the vision tower to use; all recipes use -2."}
    )
    tune_vision_tower: bool = field(default=False, metadata={"help": "Train the vision tower too, and save it."})
    pretrain_mm_mlp_adapter: str | None = field(
        default=None, metadata={"help": "mm_projector.bin of stage 1 to start from."}
    )
    mm_projector_type: str | None = field(
        default="linear", metadata={"help": f"The connector: {', '.join(known_projector_types())}."}
    )
    mm_use_im_start_end: bool = field(default=False, metadata={"help": "Put <im_start>, <im_end> around an image."})
    mm_use_im_patch_token: bool = field(default=True, metadata={"help": "Add <im_patch> to the vocabulary."})
    mm_patch_merge_type: str | None = field(default="flat", metadata={"help": "flat, spatial or spatial_unpad."})
    mm_vision_select_feature: str | None = field(default="patch", metadata={"help": "patch or cls_patch."})
    mm_elastic_budgets: str | None = field(
        default=None,
        metadata={"help": "Numbers of visual tokens, for example 17,33,65: one is drawn for every optimizer step."},
    )
    torch_compile_vision: bool = field(default=False, metadata={"help": "Compile the vision tower and the connector."})
    s2: bool = field(default=False, metadata={"help": "Multi-scale vision tower."})
    s2_scales: str = field(default=S2_DEFAULT_SCALES, metadata={"help": "Scales of the multi-scale tower, pixels."})


@dataclass
class DataArguments:
    """Data files and images."""

    data_path: str | None = field(default=None, metadata={"help": "Training data, .json or .jsonl."})
    lazy_preprocess: bool = field(default=False, metadata={"help": "No effect: preprocessing is always lazy."})
    is_multimodal: bool = field(default=False, metadata={"help": "Set by the program: True with a vision tower."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    image_aspect_ratio: str = field(
        default="square",
        metadata={"help": "pad: pad to a square; anyres: crops; anything else: the processor's own cropping."},
    )
    image_grid_pinpoints: str | None = field(
        default=None,
        metadata={"help": "Canvases of anyres in pixels, [[w, h], ...]; default: up to 3 x 1 and 2 x 2 crops."},
    )
    on_bad_sample: str = field(
        default="error",
        metadata={"help": "A record whose image cannot be used: error, or skip (counted and logged)."},
    )


def connector_arguments() -> type:
    """A dataclass with one optional flag per connector setting; the default is None."""
    return make_dataclass("ConnectorArguments", setting_flags())


# Flags of transformers 4.37 that have no meaning any more. `None` as default: anything else was given by the user.
IGNORED_FLAGS = (
    "save_safetensors",
    "overwrite_output_dir",
    "no_cuda",
    "half_precision_backend",
    "include_tokens_per_second",
    "split_batches",
    "fsdp_transformer_layer_cls_to_wrap",
    "include_inputs_for_metrics",
)
_PARENT_FLAGS = {f.name for f in fields(transformers.TrainingArguments)}
_IgnoredArguments = make_dataclass(
    "_IgnoredArguments",
    [
        (name, str | None, field(default=None, metadata={"help": "Ignored."}))
        for name in IGNORED_FLAGS
        if name not in _PARENT_FLAGS
    ],
)


@dataclass
class TrainingArguments(transformers.TrainingArguments, _IgnoredArguments):
    """transformers' training arguments with LLaVA's additions and the defaults of transformers 4.37."""

    cache_dir: str | None = field(default=None, metadata={"help": "Cache of downloaded models."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: `images` is not a column."})
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "Freeze the connector."})
    mpt_attn_impl: str | None = field(default="triton", metadata={"help": "No effect: MPT is not supported."})
    model_max_length: int = field(default=512, metadata={"help": "Longest sequence, visual tokens counted."})
    double_quant: bool = field(default=True, metadata={"help": "Quantise the quantisation constants too (4 bit)."})
    quant_type: str = field(default="nf4", metadata={"help": "4-bit type: nf4 or fp4."})
    bits: int = field(default=16, metadata={"help": "4 and 8 quantise the language model."})
    lora_enable: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of the language model."})
    lora_r: int = field(default=64, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout."})
    lora_weight_path: str = field(default="", metadata={"help": "No effect."})
    lora_bias: str = field(default="none", metadata={"help": "none, all or lora_only."})
    mm_projector_lr: float | None = field(default=None, metadata={"help": "Learning rate of the connector."})
    B_matrix_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the learned output matrices B of vlora."}
    )
    vision_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision tower (--tune_vision_tower)."}
    )
    group_by_modality_length: bool = field(
        default=False, metadata={"help": "Every optimizer step sees images only or text only, of similar lengths."}
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Put several samples side by side in one row; --per_device_train_batch_size counts rows."},
    )
    packing_length: int | None = field(
        default=None, metadata={"help": "Positions of a packed row, visual tokens counted; default: model_max_length."}
    )
    chunked_loss: bool = field(
        default=False, metadata={"help": "Compute logits where a label is only, in chunks; always so with --packing."}
    )
    loss_average: str = field(
        default="token", metadata={"help": "token: all labels of a batch weigh the same; sample: all samples do."}
    )
    # Renamed since transformers 4.37.
    evaluation_strategy: str | None = field(default=None, metadata={"help": "Now eval_strategy."})
    warmup_ratio: float | None = field(default=None, metadata={"help": "Now a warmup_steps below 1."})
    group_by_length: bool = field(default=False, metadata={"help": "Now train_sampling_strategy group_by_length."})
    logging_dir: str | None = field(default=None, metadata={"help": "Folder of TensorBoard's logs."})
    # Defaults of transformers 4.37 that must not drift.
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations."})
    # The order of the types matters: the parser takes the second of them.
    report_to: None | str | list[str] = field(default="all", metadata={"help": "Loggers: all, none, wandb."})  # noqa: RUF036

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: FSDP is asked for, by --fsdp or by `accelerate launch --use_fsdp`.
        """
        if self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
            raise ValueError(
                "FSDP is not supported: the connector and LoRA adapters would be saved in pieces. DeepSpeed shards the "
                "same: --deepspeed scripts/zero3.json instead of --fsdp"
            )
        for name in IGNORED_FLAGS:
            if name not in _PARENT_FLAGS and getattr(self, name) is not None:
                logger.warning("--%s has no effect any more and is ignored.", name)
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.logging_dir:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir
        self.report_to = usable_loggers(self.report_to)
        if not torch.cuda.is_available():
            self.use_cpu = True  # or --bf16 True is refused
        if not is_torch_tf32_available():
            if self.tf32:
                logger.warning("--tf32 True needs an Ampere GPU or a newer one and has no effect here.")
            self.tf32 = None  # or it is refused
        with warnings.catch_warnings():
            # Renamed for transformers 6; the scripts' flag stays.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
            super().__post_init__()

    @functools.cached_property
    def _setup_devices(self) -> torch.device:
        """Keep DeepSpeed without a GPU: with `use_cpu` transformers would silently drop it."""
        if not (self.deepspeed and not torch.cuda.is_available()):
            return transformers.TrainingArguments._setup_devices.func(self)
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        options: dict[str, Any] = {}
        if int(os.environ.get("LOCAL_RANK", -1)) != -1:
            options = {"backend": "gloo", "timeout": timedelta(seconds=self.ddp_timeout)}
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        try:
            self.distributed_state = PartialState(**options)
        finally:
            del os.environ["ACCELERATE_USE_DEEPSPEED"]
        self._n_gpu = 0
        return self.distributed_state.device


def usable_loggers(report_to: str | list[str] | None) -> list[str]:
    """The requested loggers that are installed; each of the others is named in a warning."""
    from transformers.integrations import get_available_reporting_integrations

    wanted = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if wanted in ([], ["none"]):
        return []
    if wanted == ["all"]:
        return get_available_reporting_integrations()
    missing = [name for name in wanted if name not in get_available_reporting_integrations()]
    if missing:
        logger.warning("--report_to: %s not installed; training without.", ", ".join(missing))
    return [name for name in wanted if name not in missing]


def parse_arguments(args: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parse the command line (`sys.argv` by default).

    Connector settings become attributes of the model arguments.

    Raises:
        ValueError: an unknown flag, or a value that a flag does not have.
    """
    connector_class = connector_arguments()
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, connector_class))
    model_args, data_args, training_args, connector_args = parser.parse_args_into_dataclasses(args=args)
    for setting in fields(connector_class):
        setattr(model_args, setting.name, getattr(connector_args, setting.name))
    if data_args.on_bad_sample not in ("error", "skip"):
        raise ValueError(f"--on_bad_sample must be error or skip, not {data_args.on_bad_sample!r}")
    settle_packing(training_args)
    return model_args, data_args, training_args


def settle_packing(args: TrainingArguments) -> None:
    """Complete the flags of packing and of the loss.

    Raises:
        ValueError: they contradict one another.
    """
    if args.loss_average not in AVERAGES:
        raise ValueError(f"--loss_average must be {' or '.join(AVERAGES)}, not {args.loss_average!r}")
    if args.packing:
        args.chunked_loss = True
        args.packing_length = args.packing_length or args.model_max_length
        if args.packing_length < args.model_max_length:
            raise ValueError(
                f"--packing_length {args.packing_length} is shorter than a sample may be (--model_max_length "
                f"{args.model_max_length}); raise the one or lower the other"
            )
    elif args.packing_length is not None:
        raise ValueError("--packing_length has no effect without --packing True")
    if args.loss_average == "sample" and not args.chunked_loss:
        raise ValueError("--loss_average sample needs --chunked_loss True or --packing True")
