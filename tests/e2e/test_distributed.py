"""DeepSpeed on two CPU processes: equal to one process without it, ZeRO-2 equal to ZeRO-3, exact resuming."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import REPOSITORY, VECTORS
from tests.support.training import BASE_FLAGS, final_state, run_training

pytestmark = pytest.mark.e2e

CONNECTOR = ["--mm_projector_type", "acformer", "--mm_num_visual_tokens", "9", "--mm_resampler_depth", "1"]
VLORA = ["--mm_projector_type", "vlora", "--vlora_dim", "32", "--vlora_depth", "1", "--vlora_heads", "2"]
VLORA += ["--vlora_rank", "4", "--vlora_type", "qkvom"]
FULL = ["--version", "v1", "--data_path", "train/data.json", *CONNECTOR]
STAGE1 = ["--version", "plain", "--data_path", "train/data_plain.json", "--tune_mm_mlp_adapter", "True", *CONNECTOR]
PACKED = ["--packing", "True"]
LORA = [*FULL, *PACKED, "--lora_enable", "True", "--lora_r", "4", "--gradient_checkpointing", "True"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deepspeed_launcher(program: list[str], environment: dict[str, str]) -> str:
    """Start two processes by DeepSpeed's launcher; gives the end of their output if they fail."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    options = {"cwd": VECTORS / "llava", "capture_output": True, "text": True, "timeout": 400, "check": False}
    result = subprocess.run([*command, *program], env=environment, **options)
    return (result.stdout + result.stderr)[-4000:] if result.returncode else ""


def srun(program: list[str], environment: dict[str, str]) -> str:
    """Start two processes as Slurm does: the same command twice, with variables that tell them apart."""
    task = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    task |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    options = {"cwd": VECTORS / "llava", "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    tasks = [
        subprocess.Popen(
            [sys.executable, *program], env=environment | task | {"SLURM_PROCID": i, "SLURM_LOCALID": i}, **options
        )
        for i in ("0", "1")
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in tasks]
    finally:
        for process in tasks:
            process.kill()
    return "\n".join(outputs)[-4000:] if any(process.returncode for process in tasks) else ""


Starter = Callable[[list[str], dict[str, str]], str]


def launch(output: Path, zero: str, *flags: str, start: Starter = deepspeed_launcher) -> list[dict]:
    """Run train_mem.py on two processes with the base flags and `flags`; returns the log."""
    base = [part for pair in BASE_FLAGS.items() for part in pair]
    program = [
        str(REPOSITORY / "llava/train/train_mem.py"),
        "--deepspeed",
        str(REPOSITORY / f"scripts/{zero}.json"),
        *base,
        "--output_dir",
        str(output),
        *flags,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    failure = start(program, environment)
    assert not failure, failure
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def losses(log: list[dict]) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]


def test_two_processes_equal_one_and_zero2_equals_zero3(tmp_path: Path, llava_vectors: Path) -> None:
    flags = [*FULL, "--max_steps", "4", "--save_strategy", "no", "--per_device_train_batch_size", "1"]
    one = run_training(tmp_path / "one", *flags, "--gradient_accumulation_steps", "2").state.log_history
    two = launch(tmp_path / "two", "zero2", *flags)
    three = launch(tmp_path / "three", "zero3", *flags, start=srun)
    assert len(losses(one)) == 4
    # Two processes share the data: a step moves as far through the epoch as two accumulated micro-batches.
    assert [e["epoch"] for e in one if "loss" in e] == [e["epoch"] for e in two if "loss" in e]
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert losses(three) == pytest.approx(losses(two), abs=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "three")]
    assert weights[0].keys() == weights[1].keys() == weights[2].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-4, msg=name)
        torch.testing.assert_close(weights[2][name], tensor, rtol=0, atol=1e-4, msg=name)


def mixed_data(path: Path) -> Path:
    """Three samples with an image, five without: with two processes, some step has an image on one of them only."""
    records = json.loads((VECTORS / "llava/train/data.json").read_text())
    images = [r for r in records if "image" in r][:3]
    texts = [r for r in records if "image" not in r]
    path.write_text(json.dumps(images + texts + [texts[0] | {"id": "again"}]))
    return path


def grouped_base(folder: Path) -> Path:
    """The vectors' base with keys and values narrower than queries: B is a parameter per letter then."""
    base = VECTORS / "llava/assets/base-llama"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(base, num_key_value_heads=2)).save_pretrained(folder)
    return folder


# Beside VLoRA alone, all at once that makes it harder.
EVERYTHING = ["--mm_projector_type", "acformer_vlora", *VLORA[2:], *CONNECTOR[2:], "--tune_vision_tower", "True"]
EVERYTHING += ["--vision_tower_lr", "1e-4", *PACKED]


@pytest.mark.parametrize("connector", [VLORA, EVERYTHING], ids=["vlora", "everything"])
def test_vlora_with_images_on_one_process_only(connector: list[str], tmp_path: Path, llava_vectors: Path) -> None:
    """Both must run the generator and the same operations in every step, or they would wait for each other.

    With recomputation the order of ZeRO-3's gathering follows from the operations.
    """
    data = ["--version", "v1", "--data_path", str(mixed_data(tmp_path / "mixed.json")), "--save_strategy", "no"]
    if connector is EVERYTHING:
        data += ["--model_name_or_path", str(grouped_base(tmp_path / "grouped"))]
    # Training goes on from a checkpoint that holds the connector: ZeRO-3 builds it in pieces then.
    run_training(tmp_path / "base", *data, *connector, "--max_steps", "1")
    data += ["--model_name_or_path", str(tmp_path / "base")]
    flags = [*data, *connector, "--max_steps", "6", "--per_device_train_batch_size", "1", "--weight_decay", "0.01"]
    flags += ["--B_matrix_lr", "2e-3", "--gradient_checkpointing", "True"]
    one = run_training(tmp_path / "one", *flags, "--gradient_accumulation_steps", "2").state.log_history
    assert len(losses(one)) == 6
    weights = load_file(tmp_path / "one/model.safetensors")
    learned = [tensor for name, tensor in weights.items() if "Bs" in name.split(".")]
    assert learned and all(tensor.count_nonzero() for tensor in learned)
    assert losses(launch(tmp_path / "three", "zero3", *flags)) == pytest.approx(losses(one), abs=1e-5)
    found = load_file(tmp_path / "three/model.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("mode, zero, flags", [("stage1", "zero2", STAGE1), ("lora", "zero3", LORA)])
def test_resume_under_deepspeed(mode: str, zero: str, flags: list[str], tmp_path: Path) -> None:
    steps = ["--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "1"]
    whole = launch(tmp_path / "llava-whole", zero, *flags, *steps)
    checkpoint = tmp_path / "llava-whole/checkpoint-2"
    assert (checkpoint / "global_step2").is_dir(), "DeepSpeed was not in use"
    shutil.copytree(checkpoint, tmp_path / "llava-cut/checkpoint-2")
    cut = launch(tmp_path / "llava-cut", zero, *flags, *steps)
    assert losses(cut) == losses(whole)
    before, after = final_state(tmp_path / "llava-whole", mode), final_state(tmp_path / "llava-cut", mode)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "llava-whole/config.json").is_file()
