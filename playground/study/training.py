"""Both training stages of one connector with one seed, by `llava.train.train` with the scripts' flags."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import write_json
from .protocol import Folders, Protocol, Run, read_json

logger = logging.getLogger(__name__)

BASES = Path(__file__).resolve().parent.parent / "bases"
FINISHED = "finished.json"  # in a checkpoint's folder: the settings that it was trained with


def train(run: Run, protocol: Protocol, folders: Folders) -> dict[str, float]:
    """Run both stages, unless a checkpoint with these settings exists. -> seconds of each stage that was trained."""
    seconds = {}
    stages = {"stage1": (run.stage1(folders), stage1_flags), "stage2": (run.stage2(folders), stage2_flags)}
    for stage, (folder, flags) in stages.items():
        settings = _training_settings(run, protocol, stage)
        if read_json(folder / FINISHED) == settings:
            continue
        if folder.exists():  # unfinished, or of other settings
            shutil.rmtree(folder)
        logger.info("== %s", stage)
        started = time.perf_counter()
        _call_train(flags(run, protocol, folders))
        seconds[stage] = round(time.perf_counter() - started, 1)
        write_json(folder / FINISHED, settings)
    return seconds


def _training_settings(run: Run, protocol: Protocol, stage: str) -> dict[str, Any]:
    """Everything that determines a stage's checkpoint: stage 1 depends neither on stage 2 nor on the questions."""
    skipped = ("questions", *(["stage2_"] if stage == "stage1" else []))
    return {key: value for key, value in run.settings(protocol).items() if not key.startswith(skipped)}


def _call_train(flags: list[str]) -> None:
    from llava.train.train import train as train_entry

    with _command_line(["train.py", *flags]):
        train_entry()


@contextmanager
def _command_line(argv: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = before


def _common_flags(run: Run, protocol: Protocol, folders: Folders) -> dict[str, Any]:
    """What both scripts give, with the changes that `scripts/quickstart.sh` makes for two CPU cores."""
    return {
        "model_name_or_path": BASES / "tiny-llama",
        "vision_tower": BASES / "tiny-clip",
        "image_folder": folders.data,
        "mm_projector_type": run.connector,
        "mm_num_visual_tokens": protocol.tokens,
        "mm_resampler_depth": protocol.resampler_depth,
        "mm_resampler_heads": protocol.resampler_heads,
        "mm_resampler_dim_head": protocol.resampler_dim_head,
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "bf16": False,
        "tf32": False,
        "num_train_epochs": 1,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "evaluation_strategy": "no",
        "save_strategy": "no",
        "weight_decay": 0.0,
        "warmup_ratio": 0.03,
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "model_max_length": 512,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "lazy_preprocess": True,
        "report_to": "none",
        "seed": run.seed,
        **run.own_settings,
    }


def stage1_flags(run: Run, protocol: Protocol, folders: Folders) -> list[str]:
    """Command line of stage 1, as in `scripts/v1_5/pretrain_acformer.sh`: captions, connector only."""
    return as_command_line(
        _common_flags(run, protocol, folders)
        | {
            "version": "plain",
            "data_path": folders.data / "pretrain.json",
            "tune_mm_mlp_adapter": True,
            "output_dir": run.stage1(folders),
            "max_steps": protocol.stage1_steps * run.step_factor,
            "per_device_train_batch_size": protocol.stage1_batch,
            "learning_rate": protocol.stage1_learning_rate,
        }
    )


def stage2_flags(run: Run, protocol: Protocol, folders: Folders) -> list[str]:
    """Command line of stage 2, as in `scripts/v1_5/finetune_acformer.sh`: conversations, connector and LLM."""
    return as_command_line(
        _common_flags(run, protocol, folders)
        | {
            "version": "v1",
            "data_path": folders.data / "instruct.json",
            "pretrain_mm_mlp_adapter": run.stage1(folders) / "mm_projector.bin",
            "image_aspect_ratio": "pad",
            "group_by_modality_length": True,
            "output_dir": run.stage2(folders),
            "max_steps": protocol.stage2_steps * run.step_factor,
            "per_device_train_batch_size": protocol.stage2_batch,
            "learning_rate": protocol.stage2_learning_rate,
        }
    )


def as_command_line(flags: dict[str, Any]) -> list[str]:
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]
