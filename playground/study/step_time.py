"""Step times of the connectors, side by side: all models in one process, in interleaved rounds, on the same images.

Runs that share a machine with others cannot be timed against each other; here every round gives each connector one
step under the same conditions, and the ratio to the first connector is taken within the round.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from llava.tools.machine import commit, machine_kind

from ..files import write_json
from .protocol import Folders, Protocol, Run

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

STEP_TIMES = "step_times.json"
ROUNDS, WARM_UP = 15, 2
STAGES = {
    "stage1": {"file": "pretrain.json", "version": "plain", "picture": "square"},
    "stage2": {"file": "instruct.json", "version": "vicuna_v1", "picture": "pad"},
}


def measure_step_times(
    runs: Sequence[Run], protocol: Protocol, folders: Folders, rounds: int = ROUNDS, warm_up: int = WARM_UP
) -> None:
    """Forward and backward of the whole model, as in stage 1 (connector trains) and stage 2 (connector and LLM).

    Writes per stage and connector the median seconds, and the median over rounds of the ratio to the first connector.
    """
    import torch

    from llava.model.builder import load_pretrained_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = {}
    for run in runs:
        path = run.stage2(folders)
        opened[run.connector] = load_pretrained_model(str(path), None, path.name, device=device, dtype=torch.float32)
    times: dict[str, dict[str, list[float]]] = {}
    for stage in STAGES:
        size = protocol.stage1_batch if stage == "stage1" else protocol.stage2_batch
        batch = _batch(stage, size, folders, *next(iter(opened.values())))
        models = {name: model for name, (_, model, _, _) in opened.items()}
        for model in models.values():
            _set_trainable(model, stage)
        times[stage] = {name: [] for name in models}
        logger.info("== %s", stage)
        for number in range(warm_up + rounds):
            logger.info("round %d/%d [of all connectors]", number + 1, warm_up + rounds)
            for name, model in models.items():
                seconds = _step(model, batch)
                if number >= warm_up:
                    times[stage][name].append(seconds)
    result = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine_kind(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "baseline": runs[0].connector,
        "stages": {stage: summary(by_name) for stage, by_name in times.items()},
    }
    write_json(folders.runs / STEP_TIMES, result)


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Per connector the median seconds and the median ratio to the first connector of the same round."""
    first = next(iter(times.values()))
    return {
        name: {"seconds": median(own), "ratio": median(a / b for a, b in zip(own, first, strict=True))}
        for name, own in times.items()
    }


def _batch(stage: str, size: int, folders: Folders, tokenizer: Any, model: Any, processor: Any, _: int) -> dict:
    """The first images of the stage's data, as the training's own data set and collator give them."""
    from llava.conversation import conv_templates
    from llava.train.arguments import DataArguments
    from llava.train.data import DataCollatorForSupervisedDataset, LazySupervisedDataset

    how = STAGES[stage]
    path: Path = folders.data / how["file"]
    records = json.loads(path.read_text(encoding="utf-8"))
    shown = [index for index, record in enumerate(records) if "image" in record][:size]
    args = DataArguments(is_multimodal=True, image_folder=str(folders.data), image_aspect_ratio=how["picture"])
    args.image_processor, args.mm_use_im_start_end = processor, False
    args.conv = conv_templates[how["version"]]
    tokenizer.pad_token = tokenizer.unk_token
    dataset = LazySupervisedDataset(str(path), tokenizer, args)
    batch = DataCollatorForSupervisedDataset(tokenizer)([dataset[index] for index in shown])
    return {key: value.to(model.device) for key, value in batch.items()}


def _set_trainable(model: Any, stage: str) -> None:
    model.train()
    model.requires_grad_(stage == "stage2")
    model.get_vision_tower().requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)


def _step(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    _synchronize(model)
    started = time.perf_counter()
    model(**batch).loss.backward()
    _synchronize(model)
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


def _synchronize(model: Any) -> None:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize()
