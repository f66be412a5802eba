"""What would make a run fail, or ignore a flag, found before it starts."""

import os
import warnings
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from llava.model.multimodal_projector.settings import check_stage1_settings
from llava.model.vision_state import load_connector_state, load_tower_state
from llava.model.weights import load_weights_only
from llava.tools.fitting.flags import elastic_budgets
from llava.tools.fitting.launch import Launch
from llava.tools.fitting.model import MetaModel
from llava.tools.fitting.states import ZeroConfig
from llava.train.deepspeed_config import overruled_flags

ONE_PROCESS = ("python", "python3")
_PROCESSES = {
    "deepspeed": ("--num_gpus",),
    "torchrun": ("--nproc_per_node", "--nproc-per-node"),
    "srun": ("-n", "--ntasks"),
    "mpirun": ("-n", "-np"),
}
_NODES = ("--nnodes", "--num_nodes")


@dataclass(frozen=True)
class Problem:
    """One reason why the run would fail.

    Attributes:
        message: cause and remedy in one line.
        is_missing: a file or folder is not there (yet).
    """

    message: str
    is_missing: bool = False


def find_problems(
    launch: Launch, flags: Namespace, zero: ZeroConfig | None, meta: MetaModel, gpus: int
) -> list[Problem]:
    """Everything that is wrong, files first."""
    return [
        *missing_files(flags),
        *launcher_problems(launch, gpus),
        *engine_problems(flags, zero),
        *model_problems(flags, meta),
        *stage1_problems(flags, meta),
    ]


def missing_files(flags: Namespace) -> Iterator[Problem]:
    """Files and folders that the run reads."""
    wanted = {
        "data_path": (flags.data_path, os.path.isfile),
        "image_folder": (flags.image_folder, os.path.isdir),
        "pretrain_mm_mlp_adapter": (flags.pretrain_mm_mlp_adapter, os.path.isfile),
        "deepspeed": (flags.deepspeed if isinstance(flags.deepspeed, str) else None, os.path.isfile),
    }
    remedies = {
        "data_path": "give the training data, see docs/data.md",
        "image_folder": "give the folder that the records' image paths are relative to",
        "pretrain_mm_mlp_adapter": "train stage 1 first, or give its mm_projector.bin",
        "deepspeed": "give one of scripts/zero*.json",
    }
    for name in ("data_path", "image_folder"):
        if wanted[name][0] is None:
            yield Problem(f"--{name} is not given: {remedies[name]}", is_missing=True)
    for name, (path, exists) in wanted.items():
        if path is not None and not exists(path):
            yield Problem(f"--{name}: there is no {path}; {remedies[name]}", is_missing=True)


def launcher_problems(launch: Launch, gpus: int) -> Iterator[Problem]:
    """The number of processes that the launcher starts."""
    if launch.launcher in ONE_PROCESS and gpus > 1:
        yield Problem(
            f"{launch.launcher} starts one process, not one for each of {gpus} GPUs: use deepspeed or torchrun"
        )
    if any(launch.option(name) not in (None, "1") for name in _NODES) or launch.option("--hostfile"):
        return  # the number per node says nothing about all
    stated = launch.option(*_PROCESSES.get(launch.launcher, ()))
    if stated is not None and stated.isdigit() and int(stated) != gpus:
        yield Problem(f"{launch.launcher} starts {stated} processes, but --gpus is {gpus}: give the same number")


def engine_problems(flags: Namespace, zero: ZeroConfig | None) -> Iterator[Problem]:
    """Settings that the training engine refuses or ignores."""
    if flags.fsdp:
        yield Problem("--fsdp cannot be used: stage 1 and LoRA would save shards; use --deepspeed scripts/zero3.json")
    if zero is None:
        return
    # The recipes name their scheduler, and offloading has one of its own; training itself warns of that.
    overruled = [name for name in overruled_flags(zero.stored, flags) if name != "lr_scheduler_type"]
    if overruled:
        yield Problem(
            f"--{', --'.join(overruled)} has no effect, because {flags.deepspeed} decides: leave it out, or use "
            "scripts/zero2_clip.json or zero3_clip.json"
        )


def model_problems(flags: Namespace, meta: MetaModel) -> Iterator[Problem]:
    """Settings that do not fit the connector. (What training checks itself was refused when the model was built.)"""
    connector, name = meta.connector, meta.model.config.mm_projector_type
    if flags.image_aspect_ratio == "anyres" and not connector.is_grid:
        yield Problem(
            f"--image_aspect_ratio anyres needs one token per patch, but {name} gives "
            f"{connector.num_visual_tokens} tokens that are not a grid: use pad or square, or mlp2x_gelu"
        )
    budgets = elastic_budgets(flags)
    if budgets and not connector.is_elastic:
        yield Problem(f"--mm_elastic_budgets: {name} has a fixed number of visual tokens; use for example acformer")
    for budget in budgets if connector.is_elastic else []:
        try:
            connector.count_tokens(budget, meta.vision.heads, meta.vision.patches)
        except ValueError as error:
            yield Problem(f"--mm_elastic_budgets {budget}: {error}")
    if connector.num_visual_tokens >= flags.model_max_length:
        yield Problem(
            f"--model_max_length {flags.model_max_length} leaves no text beside {connector.num_visual_tokens} visual "
            "tokens: raise it, or choose a smaller --mm_num_visual_tokens"
        )
    options = flags.gradient_checkpointing_kwargs
    reentrant = options.get("use_reentrant") if isinstance(options, dict) else "true" in str(options).lower()
    if flags.gradient_checkpointing and reentrant and connector.space != "input":
        yield Problem(f"{name} needs recomputation that is not reentrant: leave --gradient_checkpointing_kwargs out")


def stage1_problems(flags: Namespace, meta: MetaModel) -> Iterator[Problem]:
    """The stage-1 file against the connector, by the code that training loads it with."""
    path = flags.pretrain_mm_mlp_adapter
    if path is None or not os.path.isfile(path):
        return
    try:
        check_stage1_settings(meta.model.config, path)
        state, inner = load_weights_only(path), meta.model.get_model()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no-op")  # nothing is copied to the meta device
            load_connector_state(inner, state, path)
            load_tower_state(inner, state, path)
    except ValueError as error:
        yield Problem(str(error))
