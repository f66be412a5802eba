"""Packing: which samples share a row, and that sharing one changes nothing."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava.train import lengths as lengths_module
from llava.train.lengths import lengths_of, measure_samples
from llava.train.packing import WINDOW, Pack, PackSampler, pack_window
from llava.train.planning import BatchLayout, PlanningCollator
from tests.support.training import losses_of, run_training
from tests.unit.train.test_planned_step import CONNECTORS, layout_of, model_of, samples

STAGE2 = ["--version", "v1", "--data_path", "train/data.json", "--mm_projector_type", "acformer"]
STAGE2 += ["--mm_num_visual_tokens", "9", "--mm_resampler_depth", "1", "--save_strategy", "no"]


def instruction_lengths(count: int = 3 * WINDOW, visual: int = 145) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal texts, 94 % of them with an image; and which have one."""
    generator = np.random.default_rng(0)
    with_image = generator.random(count) < 0.94
    text = np.exp(generator.normal(np.log(np.where(with_image, 180, 500)), 0.8)).astype(int) + 1
    return np.minimum(text + visual * with_image, 2048), with_image


def indices_of(packs: list[Pack]) -> list[int]:
    return [index for pack in packs for index in pack.indices]


def test_rows_are_full_and_never_too_long() -> None:
    lengths, _ = instruction_lengths()
    rows = pack_window(np.arange(WINDOW), lengths, 2048)
    assert sorted(index for row in rows for index in row) == list(range(WINDOW))
    filled = [lengths[row].sum() for row in rows]
    assert max(filled) <= 2048 and np.mean(filled) > 0.97 * 2048


@pytest.mark.parametrize("keeps_apart", [True, False])
@pytest.mark.parametrize("budgets", [(None,), (17, 65, 145)])
def test_every_epoch_has_all_samples_in_equally_many_steps(keeps_apart: bool, budgets: tuple) -> None:
    lengths, with_image = instruction_lengths()
    per_budget = {budget: lengths - (145 - (budget or 145)) * with_image for budget in budgets}
    per_step = 8
    sampler = PackSampler(per_budget, 2048, per_step, with_image if keeps_apart else None, seed=3, num_epochs=3)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        packs = list(sampler)
        assert len(packs) == len(sampler) and len(packs) % per_step == 0
        assert sorted(indices_of(packs)) == list(range(len(lengths)))
        steps = [packs[i : i + per_step] for i in range(0, len(packs), per_step)]
        for step in steps:
            assert len({pack.num_visual_tokens for pack in step}) == 1
            kinds = {bool(with_image[i]) for i in indices_of(step)}
            assert not keeps_apart or len(kinds) == 1 or step is steps[-1]
            assert all(per_budget[pack.num_visual_tokens][list(pack.indices)].sum() <= 2048 for pack in step)
        epochs.append(packs)
    assert indices_of(epochs[0]) != indices_of(epochs[1])
    again = PackSampler(per_budget, 2048, per_step, with_image if keeps_apart else None, seed=3, num_epochs=3)
    again.set_epoch(1)
    assert list(again) == epochs[1]  # from seed and epoch alone
    other = PackSampler(per_budget, 2048, per_step, with_image if keeps_apart else None, seed=4, num_epochs=3)
    assert list(other) != epochs[0]


def test_few_samples_and_bad_ones() -> None:
    lengths = np.array([10, 0, 20, 5])
    assert sorted(indices_of(list(PackSampler({None: lengths}, 100, 8)))) == [0, 2, 3]
    assert len(PackSampler({None: lengths}, 100, 2)) == 2  # divided rather than repeated


@pytest.mark.usefixtures("llava_vectors")
@pytest.mark.parametrize("name", CONNECTORS)
def test_neighbours_do_not_see_each_other(name: str) -> None:
    """Another text and another image on both sides: not a bit of the loss between them changes."""
    model = model_of(name)
    collate = PlanningCollator(layout_of(model, packed=True, chunked_loss=True))

    def loss_beside(words: list[int], image: float) -> torch.Tensor:
        row = [1, 300, -200, *words]
        middle, *others = samples([[1, -200, 7, 8, 9], row, row], [[-100, -100, 7, 8, 9], [-100] * 6, [-100] * 6])
        for other in others:
            other["image"] = torch.full_like(other["image"], image)
        with torch.no_grad():
            return model(**collate([[others[0], middle], [others[1]]])).loss

    assert torch.equal(loss_beside([11, 12, 13], 0.1), loss_beside([31, 32, 33], -0.7))


@pytest.mark.usefixtures("llava_vectors")
def test_a_packed_run_reports_what_it_packs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packing = ["--packing", "True", "--group_by_modality_length", "True", "--per_device_train_batch_size", "1"]
    with caplog.at_level(logging.INFO):
        trainer = run_training(tmp_path, *STAGE2, *packing, "--num_train_epochs", "2", "--dataloader_num_workers", "1")
    assert "optimizer step has 1 rows, about" in caplog.text
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["padding"] == 0 for entry in logged)
    trained = sum(entry["samples_per_step"] for entry in logged)
    assert trained == 2 * len(trainer.train_dataset) and len(logged) < trained
    assert all(np.isfinite(losses_of(trainer)))


@pytest.mark.usefixtures("llava_vectors")
def test_samples_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "cache"))
    run = [*STAGE2, "--packing", "True", "--max_steps", "1"]
    dataset = run_training(tmp_path / "one", *run).train_dataset
    (kept,) = (tmp_path / "cache/lengths").glob("*.npy")
    for index, (ids, markers, *_) in enumerate(dataset.measured.tolist()):
        item = dataset.samples[index]["input_ids"]
        assert (ids, markers) == (len(item), int((item == -200).sum()))
    layout = BatchLayout("input", 9, 64)
    expected = [min(ids + 8 * markers, 64) for ids, markers, *_ in dataset.measured.tolist()]
    assert lengths_of(dataset.measured, layout).tolist() == expected

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(lengths_module, "DataLoader", fails)
    assert np.array_equal(measure_samples(dataset.samples, 0, False), dataset.measured)
    dataset.samples.data_args.conv = "another template"
    with pytest.raises(AssertionError, match="measured again"):
        measure_samples(dataset.samples, 0, False)
    assert kept.exists()


@pytest.mark.usefixtures("llava_vectors")
def test_contradicting_flags(tmp_path: Path) -> None:
    for flags, message in (
        (["--packing", "True", "--packing_length", "100"], "--packing_length 100 is shorter than a sample may be"),
        (["--packing_length", "4096"], "no effect without --packing True"),
        (["--loss_average", "word"], "must be token or sample"),
        (["--loss_average", "sample"], "needs --chunked_loss True"),
    ):
        with pytest.raises(ValueError, match=message):
            run_training(tmp_path, *STAGE2, *flags)


@pytest.mark.usefixtures("llava_vectors")
@pytest.mark.parametrize(
    "packing", [["--packing", "True"], ["--group_by_modality_length", "True"]], ids=["packed", "padded"]
)
def test_elastic_training(packing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every optimizer step has one number of visual tokens, also over accumulated batches, and all of them occur."""
    seen: list[int] = []
    plain = PlanningCollator.__call__

    def recorded(self: PlanningCollator, items: Any) -> dict[str, Any]:
        batch = plain(self, items)
        seen.append(batch["num_visual_tokens"])
        assert len(batch["plan"].visual_places) % batch["num_visual_tokens"] == 0
        return batch

    monkeypatch.setattr(PlanningCollator, "__call__", recorded)
    steps = ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "1", "--max_steps", "8"]
    trainer = run_training(tmp_path, *STAGE2, "--mm_elastic_budgets", "5,9,13", *packing, *steps)
    assert all(np.isfinite(losses_of(trainer)))
    used = seen[: 2 * 8]
    assert used[::2] == used[1::2] and set(used) == {5, 9, 13}
    assert trainer.model.config.mm_elastic_budgets == [5, 9, 13]
    assert trainer.model.config.mm_num_visual_tokens == 9


@pytest.mark.usefixtures("llava_vectors")
def test_budgets_that_cannot_be(tmp_path: Path) -> None:
    for connector, budgets, message in (
        ("acformer", "5,many", "must be numbers separated by commas"),
        ("acformer", "2", "cannot be shared by 4 attention heads"),
        ("mlp2x_gelu", "5", "mlp2x_gelu has a fixed number"),
    ):
        with pytest.raises(ValueError, match=message):
            run_training(tmp_path, *STAGE2, "--mm_projector_type", connector, "--mm_elastic_budgets", budgets)
