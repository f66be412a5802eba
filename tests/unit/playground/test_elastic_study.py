"""The study of elastic training: what is trained with which flags, in which order, and the report's numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from playground import elastic_study
from playground.elastic_study import Study, gather, plan, shell_command
from playground.files import write_json
from playground.study.elastic_report import gaps, page, write_report
from playground.study.protocol import Evaluation, Folders, Protocol, Run, finished_result
from playground.study.training import stage1_flags, stage2_flags
from tests.unit.playground.test_connector_table import row, store

PROTOCOL = Protocol(tokens=17, stage1_steps=2, stage2_steps=3, pictures=40, questions=100)
STUDY = Study(budgets=(5, 17, 65), unseen=(25,), fixed=17, step_factor=2)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "data", tmp_path / "runs")


def flag(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


@pytest.mark.parametrize("flags, steps", [(stage1_flags, 2), (stage2_flags, 3)])
def test_flags_of_the_runs(flags: object, steps: int, folders: Folders) -> None:
    elastic = flags(Run("acformer", 1, budgets=(5, 17, 65)), PROTOCOL, folders)
    assert (flag(elastic, "--mm_elastic_budgets"), flag(elastic, "--mm_num_visual_tokens")) == ("5,17,65", "17")
    alone = flags(Run("acformer", 1, 65), PROTOCOL, folders)
    assert (flag(alone, "--mm_elastic_budgets"), flag(alone, "--mm_num_visual_tokens")) == (None, "65")
    longer = flags(Run("acformer", 1, budgets=(5, 17, 65), step_factor=2), PROTOCOL, folders)
    counts = [flag(command, "--max_steps") for command in (elastic, alone, longer)]
    assert counts == [str(steps), str(steps), str(2 * steps)]
    plain = {*flags(Run("acformer", 1), PROTOCOL, folders)}
    paths = {part for part in elastic if str(folders.runs) in part}
    assert {*elastic} - plain - paths == {"--mm_elastic_budgets", "5,17,65"}


def test_runs_have_folders_and_settings_of_their_own(folders: Folders) -> None:
    runs = [
        Run("acformer", 1),
        Run("acformer", 1, 17),
        Run("acformer", 1, budgets=(5, 17)),
        Run("acformer", 1, budgets=(5, 9)),
        Run("acformer", 1, budgets=(5, 17), step_factor=2),
        Run("acformer", 2, budgets=(5, 17)),
    ]
    assert len({run.stage2(folders) for run in runs}) == len({run.stage1(folders) for run in runs}) == len(runs)
    assert len({json.dumps(run.settings(PROTOCOL)) for run in runs}) == len(runs)


def test_elastic_results_are_found_again(folders: Folders) -> None:
    """Settings are compared with what JSON gives back."""
    evaluation = Evaluation(Run("acformer", 1, budgets=(5, 17)), "elastic", tokens=5)
    store(folders, evaluation, 80.0, 5, PROTOCOL)
    assert finished_result(evaluation, PROTOCOL, folders)["mean"] == 80.0
    assert finished_result(replace(evaluation, tokens=17), PROTOCOL, folders) is None


def test_plan_trains_first_and_evaluates_once() -> None:
    lists = [evaluations for _, evaluations in plan(STUDY, [1, 2])]
    every = [evaluation for evaluations in lists for evaluation in evaluations]
    # elastic and fixed at 4 budgets, 3 alone, of which the fixed one at its own budget is one; the longer one at 4
    assert len({e.name for e in every}) == len(every) == 2 * (4 + 4 + 3 - 1 + 4)
    trained: set[Run] = set()
    for evaluations in lists:
        new = [e.run for e in evaluations if e.run not in trained]
        assert len(new) == len(set(new)), "processes at once would train one run twice"
        assert not new or len(new) == len(evaluations)
        trained |= set(new)
    assert not any(e.run.step_factor > 1 for e in lists[0] + lists[1]), "equal steps first"
    without = Study(budgets=(5, 17), unseen=(), step_factor=1)
    assert not any(e.run.step_factor > 1 for _, evaluations in plan(without, [1]) for e in evaluations)


@pytest.fixture
def raw(folders: Folders) -> dict:
    """Two seeds; alone at 65 is missing for the second, and there is no longer training."""
    accuracy = {"elastic": {5: 80.0, 17: 90.0, 25: 91.0, 65: 92.0}, "fixed": {5: 70.0, 25: 92.5, 65: 85.0}}
    alone = {5: 82.0, 17: 93.0, 65: 90.0}
    for seed in (1, 2):
        curves = STUDY.curves(seed)
        for curve, by_budget in accuracy.items():
            for budget, value in by_budget.items():
                store(folders, curves[curve][budget], value + 2 * (seed - 1), budget, PROTOCOL)
        for budget, value in alone.items():
            if (seed, budget) != (2, 65):
                store(folders, curves["alone"][budget], value, budget, PROTOCOL)
    raw = gather(STUDY, [1, 2], PROTOCOL, folders, "python -m playground.elastic_study --seeds 1 2")
    return json.loads(json.dumps(raw))


def test_report(raw: dict, tmp_path: Path) -> None:
    text = page(raw)
    assert row(text, "visual tokens") == [
        "visual tokens",
        "elastic",
        "trained at this budget alone",
        "trained at 17 only",
    ]
    assert row(text, "5") == ["5", "81.0 ± 1.4", "82.0 ± 0.0", "71.0 ± 1.4"]
    assert row(text, "17") == ["17", "91.0 ± 1.4", "93.0 ± 0.0", "93.0 ± 0.0"]
    assert row(text, "25 (not in the elastic training)") == [
        "25 (not in the elastic training)", "92.0 ± 1.4", "–", "93.5 ± 1.4",
    ]  # fmt: skip
    assert row(text, "65") == ["65", "93.0 ± 1.4", "90.0", "86.0 ± 1.4"]
    assert gaps(raw, "elastic") == {5: -1.0, 17: -2.0, 65: 2.0}, "over the seeds that both have"
    assert "- **elastic**: -1.0 at 5, -2.0 at 17, +2.0 at 65; mean -0.3. No budget falls short" in text
    assert (
        "-11.0 at 5, +0.0 at 17, -5.0 at 65; mean -5.3. Falls short by more than two standard errors at 5, 65." in text
    )
    assert "standard error of up to about 1.9 points" in text
    assert "**Missing: trained at this budget alone at 65, seed 2; elastic, 2 x the steps.**" in text
    assert row(text, "trained at this budget alone") == ["trained at this budget alone", "3", "6", "9"]
    for fact in ("2030-01-02", "abc1234", "2 cores", "--seeds 1 2", "--mm_elastic_budgets 5,17,65", "2 seeds"):
        assert fact in text
    write_json(tmp_path / "elastic.json", raw)
    write_report(tmp_path)
    assert (tmp_path / "elastic.md").read_text() == text
    assert (tmp_path / "elastic_training.png").read_bytes().startswith(b"\x89PNG")


def test_distances_without_the_kind_that_is_learned_suddenly(raw: dict) -> None:
    for result in raw["curves"]["alone"]:
        result["accuracy"]["word"] = 10.0
    assert gaps(raw, "elastic", ["word"]) == {5: 71.0, 17: 81.0, 65: 82.0}
    assert "Without `word`: -1.0 at 5, -2.0 at 17, +2.0 at 65; mean -0.3. No budget" in page(raw)
    assert "- **elastic**: +11.0 at 5" in page(raw)


def test_report_names_what_is_wrong(raw: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"python -m playground\.elastic_study makes it"):
        write_report(tmp_path)
    write_json(tmp_path / "elastic.json", raw | {"curves": {"elastic": []}})
    with pytest.raises(ValueError, match="holds no finished run"):
        write_report(tmp_path)


def test_command_leaves_folders_out() -> None:
    argv = ["--seeds", "1", "2", "--runs", "/tmp/x", "--out=/tmp/y", "--jobs", "1", "--stage2-steps", "9"]
    assert shell_command(argv) == "python -m playground.elastic_study --seeds 1 2 --stage2-steps 9"


def test_a_failed_training_ends_the_study_with_a_report(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def obtain_all(title: str, evaluations: list[Evaluation], protocol: Protocol, folders: Folders, jobs: int) -> list:
        asked.extend(evaluation.name for evaluation in evaluations)
        for evaluation in evaluations[:-1]:
            store(folders, evaluation, 80.0, evaluation.tokens or evaluation.run.tokens, protocol)
        return [evaluations[-1].name]

    monkeypatch.setattr(elastic_study, "make_data", lambda *arguments: None)
    monkeypatch.setattr(elastic_study, "obtain_all", obtain_all)
    out = tmp_path / "out"
    argv = ["--budgets", "5", "17", "--unseen", "--seeds", "1", "2", "--runs", str(folders.runs), "--out", str(out)]
    assert elastic_study.main(argv) == 1
    assert len(asked) == 3 and "error: 1 failed: acformer-17tokens-seed1" in capsys.readouterr().err
    assert "| 5 | 80.0 | 80.0 |" in (out / "elastic.md").read_text()


def test_the_fixed_number_is_one_of_the_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert elastic_study.main(["--tokens", "21", "--data", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err == "error: --tokens 21 must be one of --budgets 5 9 17 33 65\n"
    assert not (tmp_path / "data").exists()
