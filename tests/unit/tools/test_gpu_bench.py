"""The benchmarks of a GPU: a rehearsal of all of them on the CPU, and what happens when an item goes wrong."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.program import RequestError
from tests.conftest import REPOSITORY

ENVIRONMENT = {"machine": "a GPU", "commit": "abc"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that keeps results; scripts import each other from their own folder."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "bench"))
    import gpu_results

    return gpu_results


def test_rehearsal(tmp_path: Path) -> None:
    """Every part, in one run."""
    command = ["bash", str(REPOSITORY / "scripts/bench/gpu.sh"), "--rehearse", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    figures = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    parts = figures["parts"]
    assert list(parts) == ["tests", "steps", "anchors", "decode", "serving", "loss", "packing"]
    assert {entry["status"] for items in parts.values() for entry in items.values()} == {"done"}
    steps = {name: entry["figures"] for name, entry in parts["steps"].items()}
    assert {name.split(",")[0] for name in steps} == {"stage 1", "stage 2"}
    for name, step in steps.items():
        assert 0 < step["mfu"] < 1 and step["tokens_per_second"] > step["samples_per_second"] > 0
        assert (step["padding"] == 0) == name.endswith("packed")
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## Unit tests on the device", "## Training steps", "## Anchor search", "## Prefill and decode",
        "## Serving engine", "## The loss", "## Padded and packed epochs of stage 2",
    ]  # fmt: skip
    assert "the figures mean nothing" in page


class Runner:
    """Items that count their calls, by name what they do."""

    def __init__(self, bench: Any, path: Path) -> None:
        self.bench, self.path = bench, path
        self.calls: list[str] = []
        self.cleaned = 0

    def run(self, seconds: float = 60, works: bool = True, skip_tried: bool = False, **work: Callable[[], Any]) -> Any:
        def item(name: str, act: Callable[[], Any]) -> Any:
            def call() -> dict[str, Any]:
                self.calls.append(name)
                act()
                return {"value": 1.0}

            return self.bench.Item(name, call)

        results = self.bench.Results(self.path, ENVIRONMENT)
        items = [item(name, act) for name, act in work.items()]
        assert self.bench.run_items("part", items, results, seconds, self.clean, skip_tried) is works
        return results

    def clean(self) -> None:
        self.cleaned += 1


@pytest.fixture
def runner(bench: Any, tmp_path: Path) -> Runner:
    return Runner(bench, tmp_path / "items.json")


def fine() -> None:
    """Nothing goes wrong."""


def out_of_memory() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")


def broken() -> None:
    raise ValueError("no such kernel")


def not_installed() -> None:
    raise ModuleNotFoundError("no such package")


def interrupted() -> None:
    raise KeyboardInterrupt


def test_errors_are_recorded_and_the_rest_goes_on(runner: Runner) -> None:
    results = runner.run(memory=out_of_memory, fault=broken, good=fine)
    assert runner.calls == ["memory", "fault", "good"] and runner.cleaned == 2
    assert [results.status("part", name) for name in ("memory", "fault", "good")] == ["out of memory", "failed", "done"]
    assert results.of_part("part") == {"good": {"value": 1.0}}
    assert results.troubles() == [
        "part/memory: out of memory: CUDA out of memory. Tried to allocate 80 GiB",
        "part/fault: failed: ValueError: no such kernel",
    ]


def test_a_second_run_tries_only_what_is_missing_and_what_failed_last(runner: Runner) -> None:
    runner.run(fault=broken, memory=out_of_memory, good=fine)
    runner.calls.clear()
    results = runner.run(fault=fine, memory=fine, good=fine, new=fine)
    assert runner.calls == ["new", "fault"]
    assert results.status("part", "fault") == "done"


def test_an_interruption_loses_nothing_that_was_measured(runner: Runner) -> None:
    with pytest.raises(KeyboardInterrupt):
        runner.run(first=fine, second=interrupted)
    runner.calls.clear()
    runner.run(first=broken, second=fine)
    assert runner.calls == ["second"]


def test_a_part_stops_when_its_time_is_up(runner: Runner) -> None:
    began = time.monotonic()
    results = runner.run(0.5, slow=lambda: time.sleep(20), late=fine)
    assert time.monotonic() - began < 10 and runner.calls == ["slow"]
    assert results.troubles() == ["part/slow: out of time: stopped after 0.5 s", "part/late: out of time: not begun"]


def test_what_is_not_installed_is_skipped_in_one_line(runner: Runner) -> None:
    assert runner.run(needs=not_installed, good=fine).troubles() == ["part/needs: skipped: no such package"]
    assert runner.calls == ["needs", "good"]


def test_a_gpu_that_stopped_answering_ends_the_process(
    runner: Runner, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process goes on behind the item that broke it."""
    monkeypatch.setattr(bench, "_device_works", lambda: False)
    runner.run(works=False, breaks=broken, good=fine)
    runner.run(skip_tried=True, breaks=broken, good=fine)
    assert runner.calls == ["breaks", "good"]


def test_results_of_another_machine_are_not_continued(runner: Runner, bench: Any) -> None:
    runner.run(good=fine)
    with pytest.raises(RequestError, match="results of machine a GPU, but now it is another: add --fresh"):
        bench.Results(runner.path, ENVIRONMENT | {"machine": "another"})
    assert bench.Results(runner.path, ENVIRONMENT | {"machine": "another"}, is_fresh=True).parts == {}
    runner.path.write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match="does not hold results"):
        bench.Results(runner.path, ENVIRONMENT)
