"""The benchmarks run at a toy geometry and print their ratios; the ratios themselves are not tested."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava.tools.cost import Cost
from llava.tools.flops import GeneratorShape, LLMShape, VisionShape
from tests.conftest import REPOSITORY


def run_benchmark(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """`scripts/bench/<name>.py --quick` on the CPU."""
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "bench" / f"{name}.py"),
        "--quick",
        "--device",
        "cpu",
        *flags,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def table_rows(markdown: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of all tables of a report; later tables win."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def assert_head(report: str) -> None:
    for key in (
        "date: 20",
        "commit: ",
        "versions: torch",
        "machine: ",
        "threads: 1",
        "precision: float32",
        "command: `",
    ):
        assert f"\n- {key}" in report


def test_anchors(tmp_path: Path) -> None:
    files = [str(tmp_path / "figures.json"), str(tmp_path / "report.md")]
    result = run_benchmark("anchors", "--batches", "1", "3", "--json", files[0], "--markdown", files[1])
    assert result.returncode == 0, result.stderr
    report = Path(files[1]).read_text(encoding="utf-8")
    assert report in result.stdout
    assert_head(report)
    rows = table_rows(report)
    for name in (
        "selection, batch 1, ms",
        "selection, batch 3, ms",
        "tower + selection, batch 2, ms",
        "peak memory above the model, batch 2, MiB",
    ):
        plain, ours, ratio = rows[name]
        assert float(plain) > 0 and float(ours) > 0 and re.fullmatch(r"\d+\.\d\dx", ratio)
    figures = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    assert figures["environment"]["threads"] == "1"
    assert [entry["batch"] for entry in figures["selection"]] == [1, 3]
    assert figures["tower_and_selection"]["same_indices"] == 1.0


def test_stage1(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = run_benchmark("stage1", "--layers", "1", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert_head(result.stdout)
    connectors = {entry["connector"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["connectors"]}
    tokens = {name: entry["tokens"] for name, entry in connectors.items()}
    assert next(iter(tokens)) == "mlp2x_gelu"
    assert tokens["mlp2x_gelu"] == 64
    assert {name: tokens[name] for name in ("acformer", "c_abstractor", "evit")} == {
        "acformer": 17,
        "c_abstractor": 16,
        "evit": 18,
    }
    assert tokens["vlora"] == 0
    rows = table_rows(result.stdout)
    for name, entry in connectors.items():
        assert rows[name][-2] == f"{entry['full_seconds_ratio']:.2f}x"
        assert entry["full_seconds"] == pytest.approx(entry["seconds"] + entry["stack_seconds"])
    assert connectors["pooling"]["flops_ratio"] > 1


def test_stage1_memory_in_a_fresh_process(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = run_benchmark("stage1", "--memory", "--connectors", "mlp2x_gelu", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert [entry["peak_bytes"] > 0 for entry in json.loads(path.read_text(encoding="utf-8"))["connectors"]] == [True]
    speed_up, allowed, _, mfu = table_rows(result.stdout)["mlp2x_gelu"][-4:]
    assert speed_up == allowed == "1.00x" and mfu.endswith("%")


def test_vlora(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = run_benchmark("vlora", "--batches", "1", "2", "--text-tokens", "8", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert_head(result.stdout)
    figures = json.loads(path.read_text(encoding="utf-8"))

    toy, vision = LLMShape(64, 2, 128, 128, heads=4, kv_heads=4, head_dim=16), VisionShape(64, 3, 4, 8, 4 * 4 * 3)
    shape = GeneratorShape(width=16, depth=2, rank=4, skip=1)
    costs = [Cost(name, tokens, 8, toy, vision, generator=shape) for name, tokens in (("mlp2x_gelu", 64), ("vlora", 0))]
    for entry, (batch, cost) in zip(figures["prefill"], [(b, c) for b in (1, 2) for c in costs], strict=True):
        assert (entry["connector"], entry["batch"]) == (cost.connector, batch)
        assert entry["flops"] == batch * cost.prefill_flops
        assert entry["cache_bytes"] == batch * cost.cache_bytes(bytes_per_value=4)
        assert entry["image_cache_bytes"] == cost.image_cache_bytes(bytes_per_value=4)
        assert entry["image_weight_bytes"] == cost.weight_bytes(bytes_per_value=4)
    assert [entry["batch"] for entry in figures["hooks"]] == [1, 2]
    assert [entry["connector"] for entry in figures["stage1"]] == ["mlp2x_gelu", "vlora"]
    assert all(entry["difference"] < 1e-5 for entry in figures["generator"])

    rows = table_rows(result.stdout)
    assert re.fullmatch(r"\d+\.\d\dx", rows["vlora, 8 text"][1])
    titles = [line for line in result.stdout.splitlines() if line.startswith("## ")]
    assert titles == ["## Prefill", "## Decode", "## Hooks", "## Stage-1 step", "## Generator"]


def test_serving(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = run_benchmark("serving", "--concurrency", "2", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert_head(result.stdout)
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["requests"], row["system"]) for row in figures["bursts"]] == [(2, "threads"), (2, "engine")]
    rows = table_rows(result.stdout)
    assert re.fullmatch(r"\d+\.\d\dx", rows["2, engine"][1])
    assert all(float(cell.replace(",", "")) >= 0 for cell in rows["2, threads"][2:])
    fitting = {row["connector"]: row["fitting"] for row in figures["pictures"]}
    assert fitting["mlp2x_gelu"] == 16 < fitting["acformer, 65"]
    assert all(row["first"] > 0 for row in figures["pictures"])


def test_eval(tmp_path: Path) -> None:
    """Real programs on a recorded model; every answer is that of batch 1."""
    vectors = REPOSITORY / "tests/vectors/llava"
    flags = ["--model-path", "checkpoints/llava-v1-tiny-mlp2x", "--question-file", "eval/vqa/questions.jsonl"]
    flags += ["--image-folder", "assets/images", "--max_new_tokens", "4", "--limit", "3"]
    flags += ["--batch-sizes", "1", "3", "--rounds", "1", "--json", str(tmp_path / "figures.json")]
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/bench/eval.py"), *flags],
        cwd=vectors,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert_head(result.stdout)
    rows = table_rows(result.stdout)
    assert rows["1"][1:3] == ["1.00x", "0"] and re.fullmatch(r"[\d.]+x", rows["3"][1]) and rows["3"][2] == "0"
    figures = json.loads((tmp_path / "figures.json").read_text())["batches"]
    assert [row["answers"] for row in figures] == [3, 3]
