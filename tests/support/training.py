"""Running train() inside the test process, on the tiny models of the vectors."""

import sys
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from llava import conversation as conversation_lib
from llava.train import train as train_module
from llava.train.llava_trainer import LLaVATrainer

BASE_FLAGS = {
    "--model_name_or_path": "assets/base-llama",
    "--vision_tower": "assets/towers/clip-a",
    "--mm_vision_select_layer": "-2",
    "--mm_use_im_start_end": "False",
    "--mm_use_im_patch_token": "False",
    "--image_folder": "assets/images",
    "--report_to": "none",
    "--logging_steps": "1",
    "--save_strategy": "steps",
    "--learning_rate": "1e-3",
    "--model_max_length": "256",
    "--disable_tqdm": "True",
    "--dataloader_num_workers": "0",
}


def run_training(output_dir: Path, *flags: str) -> LLaVATrainer:
    """train() with the base flags and then `flags`; gives the finished trainer."""
    made: list[LLaVATrainer] = []

    class Recorded(LLaVATrainer):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    base = [part for pair in BASE_FLAGS.items() for part in pair]
    argv = ["train.py", *base, "--output_dir", str(output_dir), *flags]
    template = conversation_lib.conv_templates["vicuna_v1"]
    with (
        mock.patch.object(train_module, "LLaVATrainer", Recorded),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(conversation_lib, "default_conversation", template),
    ):
        train_module.train()
    return made[0]


def losses_of(trainer: LLaVATrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def final_state(folder: Path, mode: str) -> dict[str, torch.Tensor]:
    """Everything that a finished run of this mode wrote as weights."""
    if mode == "stage1":
        return torch.load(folder / "mm_projector.bin", weights_only=True)
    if mode == "lora":
        extras = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
        return extras | load_file(folder / "adapter_model.safetensors")
    return load_file(folder / "model.safetensors")
