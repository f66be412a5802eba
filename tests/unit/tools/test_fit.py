"""`python -m llava.tools.fit`: a script's own flags, the work, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch

from llava.program import RequestError
from llava.tools import fit
from llava.tools.fitting import table
from llava.tools.fitting.checks import find_problems, launcher_problems
from llava.tools.fitting.launch import record_launch
from llava.tools.fitting.plan import Assumptions, Plan, plan_script
from llava.tools.fitting.workload import Batching, TextLengths, Workload, count_records
from tests.conftest import REPOSITORY

# Stated in full, so that the numbers below do not depend on the recipes.
RECIPE = """deepspeed llava/train/train_mem.py --deepspeed scripts/zero3.json --bf16 True --version v1 \\
    --model_name_or_path lmsys/vicuna-${SIZE:-7b}-v1.5 --vision_tower openai/clip-vit-large-patch14-336 \\
    --mm_vision_select_layer -2 --mm_projector_type acformer --mm_num_visual_tokens 145 --image_aspect_ratio pad \\
    --data_path ./playground/data/llava_v1_5_mix665k.json --image_folder ./playground/data \\
    --pretrain_mm_mlp_adapter ./checkpoints/absent/mm_projector.bin --num_train_epochs 1 \\
    --per_device_train_batch_size 16 --model_max_length 2048 --gradient_checkpointing True "$@"
"""
VLORA = ["--mm_projector_type", "vlora", "--vlora_depth", "8", "--vlora_rank", "64", "--vlora_type", "qkvom"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("SIZE", raising=False)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The path of a script of stage 2."""
    return script(tmp_path, RECIPE)


def assumptions(gpus: int = 8, gpu_memory: float = 80) -> Assumptions:
    return Assumptions(gpus, gpu_memory, reserve=2, peak_tflops=989, mfu=0.4)


def script(folder: Path, text: str) -> str:
    path = folder / "run.sh"
    path.write_text(text, encoding="utf-8")
    return str(path)


# The script's own flags


def test_the_shell_resolves_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "a b\nc")
    command = 'deepspeed --master_port "${PORT:-29500}" llava/train/train_mem.py --output_dir "$WHERE" "$@"\n'
    launch = record_launch(script(tmp_path, f"true\n{command}"), ["--seed", "'7'"])
    assert (launch.launcher, launch.options) == ("deepspeed", ["--master_port", "29500"])
    assert launch.flags == ["--output_dir", "a b\nc", "--seed", "'7'"]


def test_every_launcher_is_recorded(tmp_path: Path) -> None:
    text = "${LAUNCHER:-torchrun --nproc_per_node=4} llava/train/train.py --bf16 True\n"
    launch = record_launch(script(tmp_path, text), [])
    assert (launch.launcher, launch.option("--nproc_per_node"), launch.flags) == ("torchrun", "4", ["--bf16", "True"])
    plain = record_launch(script(tmp_path, "python llava/train/train_xformers.py\n"), [])
    assert (plain.launcher, plain.options, plain.option("--num_gpus")) == ("python", [], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("false && python train.py || echo done\n", "starts no training"),
        ("echo broken >&2; exit 3; python train.py\n", "status 3: broken"),
        ("python a/train.py\npython a/train.py\n", "starts 2 trainings"),
    ],
)
def test_scripts_that_train_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        record_launch(script(tmp_path, text), [])
    with pytest.raises(RequestError, match="no script"):
        record_launch(str(tmp_path / "absent.sh"), [])


def problems_of(name: str, *flags: str) -> list[str]:
    """What is wrong with a script on 8 GPUs, without computing what it needs."""
    launch, plan = plan_script(name, list(flags), assumptions())
    return [problem.message for problem in find_problems(launch, plan.flags, plan.zero, plan.meta, 8)]


def test_other_scripts_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="was not run: it names none of"):
        record_launch(script(tmp_path, f"touch {tmp_path}/done\n"), [])
    assert not (tmp_path / "done").exists()


# The work


def test_padding_of_instruction_data() -> None:
    """A simulation of the sampler gave 2.3, 3.9 and 5.3 for these lengths: padded rows wait for the longest."""
    found = []
    for visual in (576, 145, 1):
        text = TextLengths(180, 0.8, 2048 - visual)
        found.append(Workload(665_298, 1, -1, visual, text, Batching(16, 8)).padding)
    assert found == pytest.approx([2.3, 3.9, 5.3], rel=0.1)


def test_packs() -> None:
    text = TextLengths(180, 0.8, 1903)
    work = Workload(665_298, 1, -1, 145, text, Batching(4, 8, 2, pack_length=2048))
    assert work.padding == pytest.approx(1 / 0.97)
    assert work.samples_per_step == pytest.approx(64 * 0.97 * 2048 / (145 + text.mean))
    assert work.steps == -(-665_298 // work.samples_per_step)
    assert work.longest_row == work.row_length == 2048
    assert Workload(10, 1, 7, 145, text, Batching(4, 8)).steps == 7


def test_text_is_cut_at_the_limit() -> None:
    lengths = TextLengths(180, 0.8, limit=500)
    assert lengths.longest_of(10**6) == 500 and lengths.quantile(0.5) == pytest.approx(180)
    assert TextLengths(180, 0.0, 500).mean == pytest.approx(180)


def test_records_are_counted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.tools.fitting.workload._CHUNK", 7)
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"id": str(i), "conversations": []} for i in range(50)]), encoding="utf-8")
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"conversations": []}\n\n' * 3, encoding="utf-8")
    assert [count_records(str(path)) for path in (file, lines)] == [50, 3]
    assert count_records("nowhere/llava_v1_5_mix665k.json") == 665_298
    assert count_records("nowhere/mine.json") is None


# Plans


def test_a_recipe_of_eight_gpus(recipe: str) -> None:
    _, plan = plan_script(recipe, [], assumptions())
    assert plan.stage.startswith("stage 2") and plan.zero.stage == 3
    assert (plan.workload.samples_per_step, plan.workload.steps, plan.workload.longest_row) == (128, 5198, 2048)
    states, parameters = plan.memory.states, plan.parameters
    assert parameters.trained == pytest.approx(6.82e9, rel=0.01)
    assert states.weights == pytest.approx(2 * (parameters.trained + parameters.frozen) / 8, rel=1e-6)
    assert states.optimizer == pytest.approx(12 * parameters.trained / 8, rel=1e-6)
    assert plan.memory.loss == 12 * 16 * 2048 * 32000
    assert plan.fits and not Plan(plan.flags, plan.meta, plan.zero, assumptions(gpu_memory=24)).fits
    chunked, kept = plan.changed(chunked_loss=True), plan.changed(gradient_checkpointing=False)
    assert chunked.memory.loss < plan.memory.loss / 5
    assert kept.memory.decoder > 10 * plan.memory.decoder and kept.flops.total < 0.8 * plan.flops.total
    packed = plan.changed(packing=True)
    assert packed.hours < plan.hours / 2.5


def test_sizes_and_flags_reach_the_model(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "13b")
    flags = ["--lora_enable", "True", "--lora_r", "8", "--mm_elastic_budgets", "17,257"]
    _, plan = plan_script(recipe, flags, assumptions())
    assert plan.meta.llm.layers == 40 and plan.meta.connector.num_visual_tokens == 257
    connector = sum(p.numel() for p in plan.meta.connector.parameters())
    adapters = 40 * 8 * (8 * 5120 + 3 * (5120 + 13824))
    assert plan.parameters.trained == connector + adapters
    _, quantised = plan_script(recipe, [*flags, "--bits", "4"], assumptions())
    assert quantised.parameters.frozen_bytes < plan.parameters.frozen_bytes / 3


def test_a_checkpoint_keeps_its_connector() -> None:
    _, plan = plan_script("scripts/v1_5/finetune_task.sh", [], assumptions())
    assert plan.meta.visual_tokens == 576 and plan.meta.model.config.mm_projector_type == "mlp2x_gelu"


def test_remedy_is_one_that_fits(recipe: str) -> None:
    _, plan = plan_script(recipe, [], assumptions(gpu_memory=36))
    assert not plan.fits and plan.remedy() == "--chunked_loss True"
    small = Plan(plan.flags, plan.meta, plan.zero, assumptions(gpu_memory=26)).changed(chunked_loss=True)
    assert small.remedy() == "--per_device_train_batch_size 8 --gradient_accumulation_steps 2"
    for batch, fits in ((16, False), (8, True)):
        tried = small.changed(per_device_train_batch_size=batch, gradient_accumulation_steps=16 // batch)
        assert tried.fits == fits and tried.workload.samples_per_step == 128
    assert Plan(plan.flags, plan.meta, plan.zero, assumptions(gpus=1)).remedy() is None


# The program


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fit", *flags])
    try:
        fit.main()
    except SystemExit as end:
        return end.code
    return 0


def test_report_and_numbers(recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, recipe, "--ignore-missing") == 0
    shown = capsys.readouterr()
    assert "acformer (145 visual tokens)" in shown.out and "fits, 4" in shown.out and "5,198 steps" in shown.out
    assert shown.err.count("warning: --") == 3 and "refused" not in shown.err
    assert run(monkeypatch, recipe, "--ignore-missing", "--json", "--gpu", "a100", "--", "--max_steps", "3") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["steps"], numbers["zero_stage"], numbers["visual_tokens"], numbers["fits"]) == (3, 3, 145, True)
    assert numbers["memory"]["peak"] == max(numbers["memory"]["moments"].values())
    assert numbers["seconds_per_step"] == pytest.approx(sum(numbers["flops_per_step"].values()) / (312e12 * 0.4))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data_path: there is no ./playground/data/llava_v1_5_mix665k.json"),
        ([], "train stage 1 first"),
        (["--deepspeed", "absent.json"], "--deepspeed: there is no absent.json"),
        (["--fsdp", "full_shard"], "--fsdp cannot be used"),
        (["--image_aspect_ratio", "anyres"], "acformer gives 145 tokens that are not a grid"),
        (["--model_max_length", "145"], "leaves no text beside 145 visual tokens"),
        (["--mm_elastic_budgets", "9,257"], "--mm_elastic_budgets 9: 8 visual anchors cannot be shared"),
        ([*VLORA, "--mm_elastic_budgets", "17"], "vlora has a fixed number"),
        ([*VLORA, "--gradient_checkpointing_kwargs", '{"use_reentrant": true}'], "recomputation that is not reentrant"),
        (
            ["--deepspeed", "scripts/zero3_offload.json", "--mm_projector_lr", "2e-5"],
            "--mm_projector_lr has no effect, because scripts/zero3_offload.json decides",
        ),
    ],
)
def test_refusals(recipe: str, flags: list[str], message: str) -> None:
    problems = problems_of(recipe, *flags)
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mm_num_visual_tokens", "10"], "Legal values of mm_num_visual_tokens for this tower are 17, 33"),
        (["--no_such_flag", "1"], "unrecognized arguments: --no_such_flag"),
        (["--model_name_or_path", "./checkpoints/absent"], "neither a folder with a readable config.json"),
    ],
)
def test_models_that_cannot_be_built(
    recipe: str, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((RequestError, OSError), match=message):
        run(monkeypatch, recipe, "--", *flags)


def test_what_does_not_fit_is_refused(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, recipe, "--ignore-missing", "--gpu-memory", "36") == 1
    shown = capsys.readouterr()
    assert "does NOT fit" in shown.out and "of 36: try --chunked_loss True" in shown.err


def test_gradient_clipping_that_the_file_ignores(recipe: str, tmp_path: Path) -> None:
    """Only where another value is given than accelerate's own."""
    files = {}
    for name, clipping in {"without": {}, "with": {"gradient_clipping": "auto"}}.items():
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"zero_optimization": {"stage": 2}} | clipping), encoding="utf-8")
    for name, given, refused in (("without", True, True), ("without", False, False), ("with", True, False)):
        clip = ["--max_grad_norm", "0.5"] if given else []
        problems = problems_of(recipe, "--deepspeed", str(files[name]), *clip)
        assert any("--max_grad_norm has no effect" in problem for problem in problems) == refused


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python", "python starts one process, not one for each of 8 GPUs: use deepspeed or torchrun"),
        ("torchrun --nproc_per_node 4", "torchrun starts 4 processes, but --gpus is 8: give the same number"),
        ("deepspeed --num_gpus=8", None),
        ("torchrun --nnodes 2 --nproc_per_node 4", None),
    ],
)
def test_number_of_processes(command: str, message: str | None, tmp_path: Path) -> None:
    launch = record_launch(script(tmp_path, f"{command} llava/train/train.py\n"), [])
    assert [problem.message for problem in launcher_problems(launch, gpus=8)] == ([] if message is None else [message])


def test_stage1_file_of_another_width(recipe: str, tmp_path: Path) -> None:
    """By the weights, and by the settings beside them."""
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.visual_proj.weight": torch.zeros(1024, 4)}, file)
    given = ["--pretrain_mm_mlp_adapter", str(file)]
    assert any("vlora_dim 1024, this one 512. Give --vlora_dim 1024" in p for p in problems_of(recipe, *VLORA, *given))
    (tmp_path / "config.json").write_text(json.dumps({"mm_projector_type": "vlora", "vlora_depth": 4}))
    assert any("trained with vlora_depth 4, but --vlora_depth 8" in p for p in problems_of(recipe, *VLORA, *given))


def test_tables(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut down to one connector; the numbers are those of its plans."""
    monkeypatch.setattr(table, "CONNECTORS", [("pooling", 145)])
    monkeypatch.setattr(table, "SIZES", ("13b",))
    monkeypatch.setattr(table, "CHOICES_OF", [("pooling", 145)])
    shown = table.markdown_tables(assumptions())
    assert "### Stage 1, 13B" in shown and "### Choices for pooling 145" in shown and "left of 80" in shown
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line[:1] == "|"]
    stage1, stage2 = (row for row in rows if row[0] == "pooling 145")
    for name, value in {"SIZE": "13b", "CONNECTOR": "pooling", "TOKENS": "145"}.items():
        monkeypatch.setenv(name, value)
    _, plan = plan_script("scripts/v1_5/finetune_acformer.sh", [], assumptions())
    assert (stage2[4], stage2[-1]) == (f"{plan.memory.peak / 2**30:.1f}", f"{plan.hours:.1f}")
    assert float(stage1[-1]) < float(stage2[-1])
    padded, packed = (next(row for row in rows if row[0] == name) for name in ("padded, all logits", "packed, 4 packs"))
    assert packed[4] == "1.03x" and float(packed[-1]) < float(padded[-1]) / 2
