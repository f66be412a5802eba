"""The files that a training run writes and resumes from."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable
from typing import Any

import torch

from llava.files import write_folder_atomically, write_text_atomically
from llava.model.checkpoint_kind import ADAPTER_CONFIG, LORA_EXTRAS, STAGE1_WEIGHTS, has_tuned_tower
from llava.model.weights import save_torch_atomically
from llava.tokenizer_files import save_tokenizer

logger = logging.getLogger(__name__)

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]


def maybe_zero_3(param: torch.Tensor, ignore_status: bool = False, name: str | None = None) -> torch.Tensor:
    """A detached CPU copy of a parameter; under ZeRO-3 it is gathered first, which every rank must take part in."""
    if hasattr(param, "ds_id"):
        from deepspeed import zero
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        if param.ds_status == ZeroParamStatus.NOT_AVAILABLE and not ignore_status:
            logger.debug("%s is not gathered: doing it now", name)
        with zero.GatheredParameters([param]):
            return param.data.detach().cpu().clone()
    return param.detach().cpu().clone()


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> dict[str, torch.Tensor]:
    """The adapter: names with `lora_`, plus by `bias` nothing (`none`), every bias (`all`), or those of the adapted
    layers (`lora_only`).

    Raises:
        NotImplementedError: any other `bias`.
    """
    named = dict(named_params)
    adapters = {name: param for name, param in named.items() if "lora_" in name}
    if bias == "none":
        chosen = adapters
    elif bias == "all":
        chosen = {name: param for name, param in named.items() if "lora_" in name or "bias" in name}
    elif bias == "lora_only":
        adapted = {f"{name.split('lora_')[0]}bias" for name in adapters}
        adapted |= {f"{name.split('lora_')[0]}base_layer.bias" for name in adapters}
        chosen = adapters | {name: param for name, param in named.items() if name in adapted}
    else:
        raise NotImplementedError(f"lora_bias {bias!r}: expected none, all or lora_only")
    return {name: maybe_zero_3(param, ignore_status=True, name=name) for name, param in chosen.items()}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> dict[str, torch.Tensor]:
    """Everything that trains beside the adapters: names without `lora_`."""
    chosen = {name: p for name, p in named_params if "lora_" not in name and (p.requires_grad or not require_grad_only)}
    return {name: maybe_zero_3(param, ignore_status=True, name=name) for name, param in chosen.items()}


def get_mm_adapter_state_maybe_zero_3(
    named_params: NamedParameters, keys_to_match: list[str]
) -> dict[str, torch.Tensor]:
    """Parameters whose name contains one of `keys_to_match`."""
    chosen = {name: param for name, param in named_params if any(key in name for key in keys_to_match)}
    return {name: maybe_zero_3(param, ignore_status=True, name=name) for name, param in chosen.items()}


def adapter_keys(args: Any) -> list[str]:
    """Name parts of the parameters that a stage-1 file holds."""
    keys = ["mm_projector", "image_newline"]
    if getattr(args, "mm_use_im_start_end", False):
        keys += ["embed_tokens", "embed_in"]
    return keys


def save_adapter(model: Any, args: Any, folder: str, is_writer: bool, weights_path: str | None = None) -> None:
    """`mm_projector.bin` (or `weights_path`) and config.json; all ranks must call it, one writes.

    A tuned tower is in the same file.
    """
    keys = adapter_keys(args) + (["vision_tower"] if has_tuned_tower(model.config) else [])
    state = get_mm_adapter_state_maybe_zero_3(model.named_parameters(), keys)
    if is_writer:
        with write_folder_atomically(folder) as temporary:
            model.config.save_pretrained(temporary)
        save_torch_atomically(weights_path or os.path.join(folder, STAGE1_WEIGHTS), state)


def save_lora(model: Any, bias: str, folder: str, is_writer: bool) -> None:
    """Adapter, full config.json and `non_lora_trainables.bin`; all ranks must call it, one writes."""
    adapter = get_peft_state_maybe_zero_3(model.named_parameters(), bias)
    extras = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
    if has_tuned_tower(model.config):  # whole, also if it was tuned in an earlier stage and stands still in this one
        extras |= get_mm_adapter_state_maybe_zero_3(model.named_parameters(), ["vision_tower"])
    if is_writer:
        with write_folder_atomically(folder) as temporary:
            model.config.save_pretrained(temporary)
            model.save_pretrained(temporary, state_dict=adapter, save_embedding_layers=False)
            _trim_adapter_config(os.path.join(temporary, ADAPTER_CONFIG))
            torch.save(extras, os.path.join(temporary, LORA_EXTRAS))


# What adapter_config.json held in the days of LLaVA-1.5; an older PEFT refuses any other key.
_PORTABLE_ADAPTER_KEYS = """
    alpha_pattern auto_mapping base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights
    layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout megatron_config megatron_core
    modules_to_save peft_type r rank_pattern revision target_modules task_type
""".split()  # noqa: SIM905


def _trim_adapter_config(path: str) -> None:
    """Drop the keys that newer versions of PEFT add; loading does not need them."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    portable = {key: value for key, value in config.items() if key in _PORTABLE_ADAPTER_KEYS}
    write_text_atomically(path, json.dumps(portable, indent=2, sort_keys=True) + "\n")


def safe_save_model_for_hf_trainer(trainer: Any, output_dir: str) -> None:
    """Collect the state and write it: the connector only in stage 1, else the whole model.

    In stage 1, an `output_dir` whose last part begins with `checkpoint-` gets its weights in
    `<parent>/mm_projector/<part>.bin` instead.
    """
    if getattr(trainer.args, "tune_mm_mlp_adapter", False):
        parent, last = os.path.split(output_dir.rstrip("/"))
        weights_path = None
        if last.startswith("checkpoint-"):
            weights_path = os.path.join(parent, "mm_projector", f"{last}.bin")
        save_adapter(trainer.model, trainer.args, output_dir, trainer.args.should_save, weights_path)
        return
    trainer.save_model(output_dir)


def rehearse_save(model: Any, tokenizer: Any, output_dir: str) -> None:
    """Write configurations and tokenizer to a scratch folder, so that what cannot be saved fails before training.

    Raises:
        RuntimeError: they cannot be written; the message has the reason.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".rehearsal-") as folder:
            model.config.save_pretrained(folder)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(folder)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)
    except Exception as error:
        raise RuntimeError(
            f"The trained model could not be saved to {output_dir}, so training does not start: {error}"
        ) from error


def checkpoint_to_resume(output_dir: str) -> str | None:
    """The checkpoint that all processes resume from: the first process chooses, by `latest_complete_checkpoint`.

    Raises:
        ValueError: not every process sees it; raised on all of them, so that none waits for the others.
    """
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return latest_complete_checkpoint(output_dir)
    rank = torch.distributed.get_rank()
    chosen = [latest_complete_checkpoint(output_dir) if rank == 0 else None]
    torch.distributed.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return None
    own = os.path.join(output_dir, os.path.basename(chosen[0]))
    sees: list[bool] = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(sees, _is_complete(own))
    if not all(sees):
        blind = ", ".join(str(rank) for rank, seen in enumerate(sees) if not seen)
        raise ValueError(
            f"The first process would resume from {chosen[0]}, which these processes do not have: {blind}. Put "
            "--output_dir on a disk that all nodes share, copy the checkpoint to every node, or move it away to start "
            "afresh"
        )
    return own


def latest_complete_checkpoint(output_dir: str) -> str | None:
    """The newest `checkpoint-N` that a run can resume from, or None.

    `trainer_state.json` is written last, so a checkpoint without a readable one is incomplete (or holds a connector
    only, as LLaVA writes them): it is named in a warning and skipped.
    """
    if not os.path.isdir(output_dir):
        return None
    steps = {int(m.group(1)): name for name in os.listdir(output_dir) if (m := re.fullmatch(r"checkpoint-(\d+)", name))}
    for step in sorted(steps, reverse=True):
        folder = os.path.join(output_dir, steps[step])
        if _is_complete(folder):
            return folder
        logger.warning("%s is not complete (no readable trainer_state.json): not resuming from it.", folder)
    return None


def _is_complete(checkpoint: str) -> bool:
    try:
        with open(os.path.join(checkpoint, "trainer_state.json"), encoding="utf-8") as file:
            json.load(file)
        return True
    except (FileNotFoundError, json.JSONDecodeError):
        return False
