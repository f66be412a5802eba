"""The comparison of connectors: the report's numbers, what is skipped and made again, failures, one tiny real run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from playground import connector_table
from playground.connector_table import gather, plan_further_questions, plan_trainings
from playground.files import write_json
from playground.make_data import make_data
from playground.study import obtain
from playground.study import training as connector_training
from playground.study.jobs import Finished, Job, Waiting, run_jobs, state, tail
from playground.study.obtain import obtain_all
from playground.study.protocol import Evaluation, Folders, Protocol, Run, changed_settings, finished_result
from playground.study.report import missing_runs, page, write_report
from playground.study.tables import cell
from playground.study.training import stage1_flags, stage2_flags
from playground.world.language import CATEGORIES
from tests.conftest import REPOSITORY

PROTOCOL = Protocol(tokens=17, stage1_steps=2, stage2_steps=2, pictures=40, questions=2)
BOTH = ["mlp2x_gelu", "acformer"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "data", tmp_path / "runs")


def made_up(evaluation: Evaluation, accuracy: float, tokens: int, protocol: Protocol = PROTOCOL) -> dict:
    return {
        "table": evaluation.table,
        "connector": evaluation.connector or evaluation.run.connector,
        "trained_as": evaluation.run.connector,
        "seed": evaluation.run.seed,
        "visual_tokens": tokens,
        "accuracy": dict.fromkeys(CATEGORIES, accuracy),
        "mean": accuracy,
        "seconds": {},
        "date": "2030-01-02",
        "commit": "abc1234",
        "machine": "2 cores",
        "settings": evaluation.settings(protocol),
    }


def store(
    folders: Folders, evaluation: Evaluation, accuracy: float, tokens: int, protocol: Protocol = PROTOCOL
) -> None:
    path = evaluation.result_file(folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made_up(evaluation, accuracy, tokens, protocol))


@pytest.fixture
def raw(folders: Folders) -> dict:
    """Two connectors, three seeds, one of them missing, and everything else."""
    for seed, mlp, acformer in ((1, 90.0, 80.0), (2, 92.0, 84.0), (3, 97.0, None)):
        store(folders, Evaluation(Run("mlp2x_gelu", seed)), mlp, 64)
        if acformer is not None:
            store(folders, Evaluation(Run("acformer", seed)), acformer, 17)
            for budget in (5, 17):
                elastic = Evaluation(Run("acformer", seed), "elastic", tokens=budget)
                store(folders, elastic, acformer - 17 + budget, budget)
        store(folders, Evaluation(Run("mlp2x_gelu", seed), "training_free", "evit", 17), 40.0 + seed, 18)
        store(folders, Evaluation(Run("mlp2x_gelu", seed), "blank"), 28.0, 64)
    times = {"mlp2x_gelu": {"seconds": 0.5, "ratio": 1.0}, "acformer": {"seconds": 0.4, "ratio": 0.8}}
    step_times = {
        "date": "2030-01-02", "commit": "abc1234", "machine": "2 cores", "threads": 1, "rounds": 15,
        "baseline": "mlp2x_gelu", "stages": {"stage1": times, "stage2": times},
    }  # fmt: skip
    write_json(folders.runs / "step_times.json", step_times)
    return gather(BOTH, [1, 2, 3], PROTOCOL, folders, "bash scripts/v1_5/connector_table.sh")


# ---- report


def row(text: str, name: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [part.strip() for part in lines[0].strip("|").split("|")]


def test_mean_and_sample_deviation() -> None:
    assert cell([90.0, 92.0, 97.0]) == "93.0 ± 3.6"  # deviations -3, -1, 4: sqrt(26 / 2)
    assert cell([90.0]) == "90.0" and cell([]) == "–"


def test_report_shows_every_table(raw: dict) -> None:
    text = page(raw)
    assert row(text, "mlp2x_gelu")[1:9] == ["64", *["93.0 ± 3.6"] * 7]
    assert row(text, "mlp2x_gelu")[-2:] == ["1.00", "1.00"]
    assert row(text, "acformer")[1:9] == ["17", *["82.0 ± 2.8"] * 7]
    assert row(text, "acformer")[-1] == "0.80"
    assert row(text, "a blank image")[-3] == "28.0 ± 0.0"
    assert row(text, "5")[-1] == "70.0 ± 2.8" and row(text, "17 (trained)")[-1] == "82.0 ± 2.8"
    assert row(text, "evit (training-free)")[1:3] == ["18", "42.0 ± 1.0"]
    assert "**Published, not measured here" in text and "58.0 / 61.3 / 68.4 / 1846.1" in text
    for fact in ("2 steps of 32", "2030-01-02", "abc1234", "2 cores", "1, 2, 3", "connector_table.sh"):
        assert fact in text.split("## Trained")[0]


def test_missing_seed_is_named(raw: dict) -> None:
    assert missing_runs(raw) == ["acformer seed 3"]
    assert "**Missing: acformer seed 3.**" in page(raw)


def test_report_without_step_times_and_extras(raw: dict) -> None:
    raw["step_times"] = None
    raw["results"] = [result for result in raw["results"] if result["table"] == "trained"]
    text = page(raw)
    assert "not measured" in text and "Elastic" not in text and "Training-free" not in text


def test_report_is_remade_from_the_raw_file(raw: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="connector_table"):
        write_report(tmp_path)
    write_json(tmp_path / "connectors.json", raw)
    write_report(tmp_path)
    assert (tmp_path / "connectors.md").read_text() == page(raw)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("connectors.png", "elastic.png"))


def test_missing_matplotlib_names_the_extra(raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.extras.importlib.util.find_spec", lambda name: None)
    write_json(tmp_path / "connectors.json", raw)
    with pytest.raises(ImportError, match=r"matplotlib.*llava\[eval\]"):
        write_report(tmp_path)


# ---- what is done again


def test_result_of_other_settings_is_not_reused(folders: Folders) -> None:
    evaluation = Evaluation(Run("acformer", 1))
    store(folders, evaluation, 80.0, 17)
    assert finished_result(evaluation, PROTOCOL, folders)["mean"] == 80.0
    assert changed_settings(evaluation, PROTOCOL, folders) == []
    longer = replace(PROTOCOL, stage2_steps=9)
    assert finished_result(evaluation, longer, folders) is None
    assert changed_settings(evaluation, longer, folders) == ["stage2_steps 2 -> 9"]
    assert finished_result(replace(evaluation, run=Run("acformer", 2)), PROTOCOL, folders) is None


def test_plan_covers_everything_once() -> None:
    plan = [*plan_trainings(BOTH, [1, 2]), *plan_further_questions(BOTH, [1, 2], 17)]
    assert len({e.name for e in plan}) == len(plan) == 2 * (2 + 5 + 4 + 1)
    assert not plan_further_questions(["perceiver"], [1], 17)


def test_training_goes_on_at_the_unfinished_stage(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    run, called = Run("acformer", 1), []

    def call_train(flags: list[str], fail: bool = False) -> None:
        folder = Path(flags[flags.index("--output_dir") + 1])
        assert not folder.exists()
        folder.mkdir(parents=True)
        called.append(folder.name)
        if fail:
            raise KeyboardInterrupt

    monkeypatch.setattr(connector_training, "_call_train", lambda flags: call_train(flags, fail=bool(called)))
    with pytest.raises(KeyboardInterrupt):
        connector_training.train(run, PROTOCOL, folders)
    monkeypatch.setattr(connector_training, "_call_train", call_train)
    connector_training.train(run, PROTOCOL, folders)
    assert called == ["llava-acformer-seed1-pretrain", "llava-acformer-seed1", "llava-acformer-seed1"]
    connector_training.train(run, replace(PROTOCOL, questions=9), folders)  # does not concern training
    assert len(called) == 3
    connector_training.train(run, replace(PROTOCOL, stage2_steps=9), folders)
    assert called[3:] == ["llava-acformer-seed1"]
    connector_training.train(run, replace(PROTOCOL, stage1_steps=9), folders)
    assert called[4:] == ["llava-acformer-seed1-pretrain", "llava-acformer-seed1"]


@pytest.mark.parametrize("script, flags", [("pretrain", stage1_flags), ("finetune", stage2_flags)])
def test_flags_are_those_of_the_scripts(script: str, flags: object, folders: Folders) -> None:
    """Only what two CPU cores need is different, and DeepSpeed is left out."""
    show, environment = ["bash", f"scripts/v1_5/{script}_acformer.sh"], os.environ | {"LAUNCHER": "echo"}
    shown = subprocess.run(show, env=environment, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    asked = dict(re.findall(r"--(\w+) (\S+)", shown))
    command = flags(Run("acformer", 1), PROTOCOL, folders)
    given = {name.removeprefix("--"): value for name, value in zip(command[::2], command[1::2], strict=True)}
    paths = {"model_name_or_path", "vision_tower", "data_path", "image_folder", "output_dir", "pretrain_mm_mlp_adapter"}
    small = {
        "learning_rate", "per_device_train_batch_size", "bf16", "tf32", "gradient_checkpointing", "report_to",
        "dataloader_num_workers", "model_max_length", "save_strategy", "logging_steps",
    }  # fmt: skip
    variables = {"mm_projector_type", "mm_num_visual_tokens"}
    assert asked.keys() - given.keys() <= {
        "deepspeed", "save_steps", "save_total_limit", "optim", "chunked_loss", "accelerator_config", "packing",
        "logging_nan_inf_filter",
    }  # fmt: skip
    assert given.keys() - asked.keys() == {
        "mm_resampler_depth", "mm_resampler_heads", "mm_resampler_dim_head", "max_steps", "seed",
    }  # fmt: skip
    for name in asked.keys() & given.keys() - paths - small - variables:
        assert given[name] == asked[name] or float(given[name]) == float(asked[name]), name


# ---- processes


def write_made_up_result(evaluation: Evaluation, protocol: Protocol, folders: Folders) -> None:
    """Stands in for `obtain_result` in the processes."""
    if evaluation.run.seed == 2:
        raise RuntimeError("the connector exploded")
    store(folders, evaluation, 70.0 + evaluation.run.seed, 17)


def test_a_failure_is_named_and_the_others_go_on(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(obtain, "obtain_result", write_made_up_result)
    monkeypatch.setattr(obtain, "PRELOADED", ())
    plan = plan_trainings(["acformer"], [1, 2, 3])
    assert obtain_all("Training runs", plan, PROTOCOL, folders, at_once=2) == ["acformer-seed2"]
    said = capsys.readouterr().out
    assert "Training runs: 3, 2 at once" in said and "the connector exploded" in said
    assert "acformer-seed3: 73.0 % right" in said and "left" in said
    assert obtain_all("Training runs", plan[::2], PROTOCOL, folders, at_once=2) == []
    assert "2 of them done before" in capsys.readouterr().out


def sleep_and_write(path: Path, seconds: float) -> None:
    print("== sleeping")
    time.sleep(seconds)
    path.write_text("done")


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_and_abandoned_jobs(tmp_path: Path) -> None:
    jobs = [
        Job("killed", kill_myself, (), tmp_path / "killed.log"),
        Job("well", sleep_and_write, (tmp_path / "well", 0.0), tmp_path / "well.log"),
    ]
    codes = {event.job.name: event.exit_code for event in run_jobs(jobs, 1) if isinstance(event, Finished)}
    assert codes == {"killed": -signal.SIGKILL, "well": 0}
    events = run_jobs([Job("long", sleep_and_write, (tmp_path / "long", 60.0), tmp_path / "long.log")], 1, tick=0.01)
    assert isinstance(next(events), Waiting)
    events.close()  # as ctrl-C does
    assert not (tmp_path / "long").exists()


def test_logs_are_read_from_their_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert state(log) == "starting"
    log.write_text("== stage1\n  1/9 [..\r  9/9 [..\n== stage2\n  1/20 [..\r  7/20 [00:01<")
    assert state(log) == "stage2 7/20"
    assert tail(log, 2) == "== stage2\n  7/20 [00:01<"


def test_unknown_connector_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert connector_table.main(["--connectors", "mlp2x_gelu", "acfromer", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "acfromer" in said and "known: " in said and "acformer" in said.split("known: ")[1]


def test_shell_script_passes_its_settings_on(tmp_path: Path) -> None:
    """The script itself, with stubs for the installation and for Python."""
    (tmp_path / "scripts/lib").mkdir(parents=True)
    (tmp_path / "scripts/v1_5").mkdir()
    script = Path(shutil.copy(REPOSITORY / "scripts/v1_5/connector_table.sh", tmp_path / "scripts/v1_5"))
    (tmp_path / "scripts/lib/setup.sh").write_text('ensure_venv() { echo "extras $1"; }\n')
    (tmp_path / "python").write_text('#!/bin/bash\necho "$OMP_NUM_THREADS $*"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SEEDS": "4 5", "TOKENS": "9", "STAGE2_STEPS": "7"}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "extras train,eval",
        "1 -m playground.connector_table --tokens 9 --stage2-steps 7 --seeds 4 5",
    ]


# ---- the real thing, tiny


def test_tiny_comparison(folders: Folders) -> None:
    """Two connectors, two steps a stage: results, overrides at load, step times and the page made of them."""
    pytest.importorskip("torch")
    from playground.study.runs import obtain_result
    from playground.study.step_time import measure_step_times

    make_data(folders.data, PROTOCOL.pictures, PROTOCOL.questions, PROTOCOL.turns, PROTOCOL.data_seed)
    plan = [
        *plan_trainings(BOTH, [1]),
        Evaluation(Run("acformer", 1), "elastic", tokens=9),
        Evaluation(Run("mlp2x_gelu", 1), "training_free", "top_p", 17),
    ]
    for evaluation in plan:
        obtain_result(evaluation, PROTOCOL, folders)
    results = [finished_result(evaluation, PROTOCOL, folders) for evaluation in plan]
    assert [result["visual_tokens"] for result in results] == [64, 17, 9, 17]
    assert [set(result["seconds"]) for result in results] == [{"stage1", "stage2", "answers"}] * 2 + [{"answers"}] * 2
    assert all(set(result["accuracy"]) == set(CATEGORIES) for result in results)

    measure_step_times([Run(name, 1) for name in BOTH], PROTOCOL, folders, rounds=1, warm_up=0)
    raw = gather(BOTH, [1], PROTOCOL, folders, "command")
    json.dumps(raw)
    text = page(raw)
    assert row(text, "mlp2x_gelu")[-1] == "1.00" and float(row(text, "acformer")[-1]) > 0
    assert str(folders.data) not in text + json.dumps(raw)
