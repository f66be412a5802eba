"""The training scripts of scripts/v1_5 with their own flags (bf16, recomputation, ZeRO-2 and ZeRO-3) on the playground.

Only paths, batch size and number of steps are given on top; each script is started as a user starts it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava.model.builder import load_pretrained_model
from playground.make_data import make_data
from tests.conftest import REPOSITORY
from tests.e2e.test_distributed import free_port
from tests.unit.model.test_connector_choice import publish

pytestmark = pytest.mark.e2e

BASES = REPOSITORY / "playground/bases"
SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("playground")
    make_data(folder / "data", num_train=12, num_eval=2, turns=3, seed=1)
    return folder


def run_script(
    name: str, world: Path, output: str, *flags: str, data: str = "instruct", base: str | None = None
) -> Path:
    """Start a script; gives its output folder."""
    command = [
        "bash",
        str(SCRIPTS / name),
        "--vision_tower",
        str(BASES / "tiny-clip"),
        "--model_name_or_path",
        base or str(BASES / "tiny-llama"),
        "--data_path",
        str(world / f"data/{data}.json"),
        "--image_folder",
        str(world / "data"),
        "--output_dir",
        str(world / output),
        "--per_device_train_batch_size",
        "2",
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        *flags,
    ]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
    }
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert len(losses(world / output)) == 2
    return world / output


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def answer(folder: Path, base: str | None = None) -> torch.Tensor:
    """Open what a script wrote and let it answer; gives the new ids."""
    options = {"device": "cpu", "dtype": torch.float32}
    _, model, processor, _ = load_pretrained_model(str(folder), base, folder.name, **options)
    images = torch.zeros(1, 3, processor.crop_size["height"], processor.crop_size["width"])
    return model.generate(torch.tensor([[1, 5, -200, 6]]), images=images, max_new_tokens=2, do_sample=False)


def test_llava_v15_scripts(world: Path) -> None:
    """pretrain -> finetune -> finetune_task, and both LoRA scripts; each result opens and answers."""
    stage1 = run_script("v1_5/pretrain.sh", world, "llava-pretrain", data="pretrain")
    adapter = ["--pretrain_mm_mlp_adapter", str(stage1 / "mm_projector.bin")]
    base = str(BASES / "tiny-llama")
    full = run_script("v1_5/finetune.sh", world, "llava-full", *adapter)
    lora = run_script("v1_5/finetune_lora.sh", world, "llava-lora", *adapter)
    task = run_script("v1_5/finetune_task.sh", world, "llava-task", base=str(full))
    task_lora = run_script("v1_5/finetune_task_lora.sh", world, "llava-task-lora", base=str(full))
    for folder, opened_on in ((stage1, base), (full, None), (lora, base), (task, None), (task_lora, str(full))):
        assert answer(folder, opened_on).shape[0] == 1


def test_acformer_scripts(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENS", "17")
    with monkeypatch.context() as alone:  # one process without DeepSpeed
        alone.setenv("LAUNCHER", "python")
        alone.setenv("DEEPSPEED_CONFIG", "")
        stage1 = run_script("v1_5/pretrain_acformer.sh", world, "llava-acformer-pretrain", data="pretrain")
    monkeypatch.setenv("PRETRAINED", str(stage1 / "mm_projector.bin"))
    full = run_script("v1_5/finetune_acformer.sh", world, "llava-acformer")
    monkeypatch.setenv("SIZE", "13b")  # ZeRO-3
    lora = run_script("v1_5/finetune_acformer_lora.sh", world, "llava-acformer-lora")
    for folder, opened_on in ((full, None), (lora, str(BASES / "tiny-llama"))):
        assert answer(folder, opened_on).shape[0] == 1
    config = json.loads((full / "config.json").read_text())
    assert (config["mm_projector_type"], config["mm_num_visual_tokens"]) == ("acformer", 17)

    # Under ZeRO-3 the connector is in pieces when published weights, and then stage 1's, are written into it.
    publish(full, sharded=False, binary=False)
    again = run_script("v1_5/finetune_acformer.sh", world, "llava-acformer-again", base=str(full))
    assert answer(again).shape[0] == 1


def test_vlora_scripts(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLORA_DIM", "64")
    small = ["--vlora_depth", "1", "--vlora_heads", "4", "--vlora_rank", "4", "--vlora_alpha", "4"]
    small += ["--skip_layers", "2", "--learning_rate", "1e-3"]
    stage1 = run_script("v1_5/pretrain_vlora.sh", world, "llava-vlora-pretrain", *small, data="pretrain")
    learned = torch.load(stage1 / "mm_projector.bin", weights_only=True)["model.mm_projector.Bs"]
    assert learned.shape == (1, 5 * 2, 128 * 4) and learned.count_nonzero()
    monkeypatch.setenv("PRETRAINED", str(stage1 / "mm_projector.bin"))
    full = run_script("v1_5/finetune_vlora.sh", world, "llava-vlora", *small)
    for folder, opened_on in ((stage1, str(BASES / "tiny-llama")), (full, None)):
        assert answer(folder, opened_on).shape[0] == 1
    config = json.loads((full / "config.json").read_text())
    assert (config["model_type"], config["vlora_dim"], config["vlora_type"]) == ("llava_vlora", 64, "qkvom")


def shown_by(script: str, **settings: str) -> str:
    """The command line that a script makes, the launcher replaced by one that prints its arguments."""
    environment = os.environ | {"LAUNCHER": "echo"} | settings
    command = ["bash", str(SCRIPTS / script)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return result.stdout.replace("\n", " ")


def test_vlora_recipe_is_consistent() -> None:
    """Both stages make the same generator, with the published rates and batches."""
    stages = [shown_by(f"v1_5/{name}_vlora.sh", SIZE="13b", VLORA_DIM="1024") for name in ("pretrain", "finetune")]
    generators = [re.findall(r"--(?:vlora_\w+|weights_sep|skip_layers|mm_projector_type) \S+", s) for s in stages]
    assert generators[0] == generators[1]
    assert {"--vlora_dim 1024", "--vlora_rank 64", "--skip_layers 4"} <= set(generators[0])
    assert "--output_dir ./checkpoints/llava-v1.5-13b-vlora-1024-pretrain " in stages[0]
    assert "--pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-vlora-1024-pretrain/mm_projector.bin " in stages[1]
    for shown, rate, batch in zip(stages, ("5e-5", "2e-5"), (96, 2), strict=True):
        assert f"--learning_rate {rate} " in shown and f"--per_device_train_batch_size {batch} " in shown
    assert "--deepspeed ./scripts/zero2_clip.json " in stages[0]
    assert "--deepspeed ./scripts/zero3_clip.json " in stages[1]


def test_size_chooses_base_model_and_folders() -> None:
    """SIZE=13b, with the launcher replaced by one that prints its arguments."""
    for name, folder in (("pretrain", "-pretrain"), ("finetune", ""), ("finetune", "-lora")):
        script = f"v1_5/{name}_acformer{'_lora' if folder == '-lora' else ''}.sh"
        shown = shown_by(script, SIZE="13b", TOKENS="257")
        assert "--model_name_or_path lmsys/vicuna-13b-v1.5 " in shown
        assert f"--output_dir ./checkpoints/llava-v1.5-13b-acformer-257{folder} " in shown
        rate = {"-pretrain": "5e-4", "": "2e-5", "-lora": "2e-4"}[folder]
        assert f"--learning_rate {rate} " in shown
        assert f"--deepspeed ./scripts/zero{2 if folder == '-pretrain' else 3}_clip.json " in shown
        assert "--deepspeed ./scripts/zero2_clip.json " in shown_by(script, SIZE="7b")
        assert "--deepspeed own.json " in shown_by(script, DEEPSPEED_CONFIG="own.json")


@pytest.mark.parametrize(
    "settings, recomputes",
    [
        ({}, "False"),
        ({"TOKENS": "257"}, "False"),
        ({"TOKENS": "577"}, "True"),
        ({"CONNECTOR": "mlp2x_gelu"}, "True"),  # 576 tokens, whatever TOKENS says
        ({"SIZE": "13b"}, "True"),
        ({"SIZE": "13b", "RECOMPUTE": "False"}, "False"),
    ],
)
def test_stage1_recomputes_where_memory_needs_it(settings: dict[str, str], recomputes: str) -> None:
    assert f"--gradient_checkpointing {recomputes} " in shown_by("v1_5/pretrain_acformer.sh", **settings)
    assert "--gradient_checkpointing True " in shown_by("v1_5/finetune_acformer.sh")


@pytest.mark.parametrize(
    "script, settings, batch",
    [
        ("finetune_vlora", {}, 2),
        ("finetune_acformer", {"TOKENS": "145"}, 3),
        ("finetune_acformer_lora", {"TOKENS": "257"}, 4),
        ("finetune_acformer", {"CONNECTOR": "mlp2x_gelu"}, 6),
        ("finetune_acformer", {"PACKING": "False"}, 16),
    ],
)
def test_packed_rows_hold_the_batch_of_the_recipe(script: str, settings: dict[str, str], batch: int) -> None:
    shown = shown_by(f"v1_5/{script}.sh", **settings)
    assert f"--per_device_train_batch_size {batch} " in shown
    assert f"--packing {settings.get('PACKING', 'True')} " in shown


def test_every_script_parses_and_names_known_flags() -> None:
    """All training scripts, the older ones too: shell syntax, existing files, and flags that the parser knows."""
    import transformers

    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, connector_arguments

    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, connector_arguments()))
    known = {option for action in parser._actions for option in action.option_strings}
    scripts = [*sorted(SCRIPTS.glob("**/pretrain*.sh")), *sorted(SCRIPTS.glob("**/finetune*.sh"))]
    assert len(scripts) >= 14
    scripts.append(SCRIPTS / "lib/train.sh")
    for script in scripts:
        text = script.read_text()
        subprocess.run(["bash", "-n", str(script)], check=True)
        flags = set(re.findall(r"^ +(--\w+)", text, flags=re.M))
        assert flags and flags <= known, (script.name, flags - known)
        assert "${LAUNCHER:-deepspeed " in text or '. "$(dirname' in text, script.name
        for path in re.findall(r"\./scripts/\w+\.json|llava/train/\w+\.py", text):
            assert (REPOSITORY / path).is_file(), (script.name, path)
