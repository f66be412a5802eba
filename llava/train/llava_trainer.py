"""The Trainer: sampling, optimizer groups, saving and resuming in three modes."""

import logging
import math
import os
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from llava.files import write_folder_atomically
from llava.model.checkpoint_kind import LORA_EXTRAS, STAGE1_WEIGHTS
from llava.model.weights import load_weights_only
from llava.tokenizer_files import save_tokenizer
from llava.train.callbacks import CheckSaving, NoExtraCheckpoint
from llava.train.checkpoint import (
    get_mm_adapter_state_maybe_zero_3,
    maybe_zero_3,
    save_adapter,
    save_lora,
)
from llava.train.data import LazySupervisedDataset
from llava.train.disk_space import RunSize, gigabytes
from llava.train.lengths import lengths_of
from llava.train.packing import ElasticSampler, PackedDataset, PackSampler
from llava.train.progress import Throughput, TrainingProgress
from llava.train.sampler import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)

__all__ = [
    "LLaVATrainer",
    "LengthGroupedSampler",
    "get_length_grouped_indices",
    "get_mm_adapter_state_maybe_zero_3",
    "get_modality_length_grouped_indices",
    "maybe_zero_3",
    "split_to_even_chunks",
]

logger = logging.getLogger(__name__)


# Bytes of a checkpoint in stage 1. Connectors that give tokens stay below, perceptual weights do not.
SMALL_CHECKPOINT = 2_000_000_000

# Parts of the model that can have a learning rate of their own.
RATE_FLAGS = {"connector": "mm_projector_lr", "B": "B_matrix_lr", "tower": "vision_tower_lr"}


def _part_of(name: str) -> str:
    """Which part of the model a parameter belongs to; `B` are the learned matrices of vlora."""
    if "vision_tower" in name:
        return "tower"
    if "mm_projector" not in name:
        return "rest"
    return "B" if "Bs" in name.split(".") else "connector"


class SamplerEpoch(TrainerCallback):
    """Set the sampler's epoch when an epoch begins: accelerate does not when it resumes inside one."""

    def __init__(self, sampler: LengthGroupedSampler | PackSampler | ElasticSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class LLaVATrainer(Trainer):
    """Trains a LLaVA model; the mode follows from the arguments: adapter (stage 1), LoRA, or full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The loss is the mean over one micro-batch, averaged over ranks and accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._seen = Throughput()
        if self.is_adapter_mode and self.args.save_total_limit and self.args.save_strategy != "no":
            self._keep_small_checkpoints()
        self.add_callback(CheckSaving())
        self.add_callback(NoExtraCheckpoint())
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self.add_callback(TrainingProgress())

    @property
    def is_adapter_mode(self) -> bool:
        return getattr(self.args, "tune_mm_mlp_adapter", False)

    @property
    def is_lora_mode(self) -> bool:
        return getattr(self.args, "lora_enable", False)

    def _keep_small_checkpoints(self) -> None:
        """Lift --save_total_limit in stage 1, whose checkpoints have always all been kept, if they are small."""
        size = RunSize.of_run(self.model, self.args).checkpoint
        if size >= SMALL_CHECKPOINT:
            logger.info("A checkpoint of the connector has %s: --save_total_limit counts.", gigabytes(size))
            return
        logger.info("All checkpoints of the connector are kept, %s each.", gigabytes(size))
        self.args.save_total_limit = None

    # Sampling and optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, PackedDataset):
            sampler = self._elastic_sampler(dataset) if dataset.measured is None else self._pack_sampler(dataset)
        elif dataset is not None and self.args.group_by_modality_length:
            sampler = self._row_sampler(dataset)
        else:
            return super()._get_train_sampler(dataset)
        if isinstance(sampler, PackSampler):
            logger.info("Packing: %s.", sampler.describe())
        self.add_callback(SamplerEpoch(sampler))
        return sampler

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def _rows_per_step(self) -> int:
        """Rows of one optimizer step over all processes."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def _row_sampler(self, dataset: LazySupervisedDataset) -> LengthGroupedSampler:
        """Samples of similar lengths and, if asked for, of one modality in every optimizer step."""
        by_modality = self.args.group_by_modality_length
        return LengthGroupedSampler(
            self.args.train_batch_size,
            self.args.world_size * self.args.gradient_accumulation_steps,
            dataset.modality_lengths if by_modality else dataset.lengths,
            group_by_modality=by_modality,
            seed=self._data_seed,
        )

    def _elastic_sampler(self, dataset: PackedDataset) -> ElasticSampler:
        """One sample per row, with a number of visual tokens drawn for every optimizer step."""
        order = self._row_sampler(dataset.samples)
        return ElasticSampler(order, dataset.layout.elastic_budgets, self._rows_per_step, self._data_seed)

    def _pack_sampler(self, dataset: PackedDataset) -> PackSampler:
        layout, rows = dataset.layout, self._rows_per_step
        budgets = layout.elastic_budgets or (None,)
        lengths = {budget: lengths_of(dataset.measured, layout, budget) for budget in budgets}
        with_image = dataset.measured[:, 1] > 0 if self.args.group_by_modality_length else None

        def sampler(num_epochs: int) -> PackSampler:
            return PackSampler(lengths, self.args.packing_length, rows, with_image, self._data_seed, num_epochs)

        if self.args.max_steps <= 0:
            return sampler(math.ceil(self.args.num_train_epochs))
        steps_per_epoch = max(len(sampler(1)) // rows, 1)
        return sampler(math.ceil(self.args.max_steps / steps_per_epoch) + 1)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With the groups of `optimizer_groups`."""
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(self.optimizer_groups(), **options)
            if "bitsandbytes" in str(optimizer_class) and options.get("optim_bits") == 8:
                self._keep_embeddings_at_32_bits()
        return self.optimizer

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """No decay for biases and norms, including the resampler's stacked norms, which transformers misses."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("norm_weight")]

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameters that require a gradient, each in one group.

        Weight decay or none. Once a part of the model has a rate of its own, these two for every part that trains;
        parts without a rate have `learning_rate`.
        """
        rates = {"rest": None, **{part: getattr(self.args, flag) for part, flag in RATE_FLAGS.items()}}
        is_split = any(rate is not None for rate in rates.values())
        decay_names = set(self.get_decay_parameter_names(self.model))
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        part_of = {name: _part_of(name) if is_split else "rest" for name in trainable}
        groups = []
        for part, rate in rates.items():
            if part not in part_of.values():
                if rate is not None:
                    logger.warning("--%s has no effect: nothing of it trains.", RATE_FLAGS[part])
                continue
            for decays in (True, False):
                names = [name for name in trainable if part_of[name] == part and (name in decay_names) == decays]
                group = {
                    "params": [trainable[name] for name in names],
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                groups.append(group | ({} if rate is None else {"lr": rate}))
        return groups

    def _keep_embeddings_at_32_bits(self) -> None:
        import bitsandbytes

        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})

    # Throughput

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Counts what a batch contains, without asking the device."""
        self._seen.add(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers' estimate for a batch, six operations per weight and position."""
        plan = inputs.get("plan")
        if plan is None:
            return super().floating_point_ops(inputs)
        return 6 * plan.num_positions * self.model.num_parameters(exclude_embeddings=True)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the throughput since the last log."""
        if "loss" in logs:
            logs |= self._seen.figures(self.args.world_size, self.args.gradient_accumulation_steps)
            self._seen = Throughput()
        super().log(logs, *args, **kwargs)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Connector, LoRA directory or whole model, by mode; every rank must call it."""
        folder = output_dir or self.args.output_dir
        if self.is_adapter_mode:
            save_adapter(self.model, self.args, folder, self.args.should_save)
        elif self.is_lora_mode:
            model = self.accelerator.unwrap_model(self.model)
            save_lora(model, self.args.lora_bias, folder, self.args.should_save)
            self._save_tokenizer(folder)
        else:
            super().save_model(folder, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:  # takes part in gathering only
            super()._save(output_dir, state_dict)
            return
        with write_folder_atomically(output_dir or self.args.output_dir) as temporary:
            super()._save(temporary, state_dict)
            self._save_tokenizer(temporary)

    def _save_tokenizer(self, folder: str) -> None:
        if self.args.should_save and self.processing_class is not None:
            save_tokenizer(self.processing_class, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not (self.is_deepspeed_enabled and self.is_adapter_mode):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # As in the parent, but the frozen language model does not belong into every checkpoint of the connector.
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if self.is_adapter_mode:
            _load_named(model, os.path.join(resume_from_checkpoint, STAGE1_WEIGHTS))
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.is_lora_mode:
            _load_named(model, os.path.join(resume_from_checkpoint, LORA_EXTRAS))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not (resume_from_checkpoint and self.is_deepspeed_enabled and self.is_adapter_mode):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # DeepSpeed's checkpoint of stage 1 holds no frozen parameter, which only a non-strict load accepts.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        path, _ = self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        if path is None:
            raise ValueError(f"DeepSpeed finds no state in {resume_from_checkpoint}; delete it to start afresh")
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared


@torch.no_grad()
def _load_named(model: Any, path: str) -> None:
    """Copy a file's entries into the parameters of the same names.

    Raises:
        ValueError: an entry has no parameter.
    """
    parameters = dict(model.named_parameters())
    for name, value in load_weights_only(path).items():
        if name not in parameters:
            raise ValueError(f"{path} holds {name}, which this model does not have: was it written with other flags?")
        parameters[name].copy_(value)
