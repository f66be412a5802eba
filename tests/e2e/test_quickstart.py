"""scripts/quickstart.sh from end to end, with very few steps, and all evaluation scripts on its model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from playground.make_benchmarks import make_benchmarks
from tests.conftest import REPOSITORY
from tests.e2e.test_distributed import free_port
from tests.support.judge_double import judge_double

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        Path(sys.prefix) != REPOSITORY / ".venv",
        reason="quickstart.sh works in .venv; scripts/test.sh runs the tests there",
    ),
]


def quickstart(tmp_path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "RUNS": str(tmp_path / "runs"), "DATA": str(tmp_path / "data"), "PICTURES": "40", "QUESTIONS": "4",
        "STAGE1_STEPS": "2", "STAGE2_STEPS": "2", "BASELINE": "", "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(REPOSITORY / "scripts/quickstart.sh")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the quickstart ran; what it printed is in `first`."""
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess:
    """The first run."""
    result = quickstart(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def benchmarks(folder: Path) -> Path:
    """The playground's benchmarks, in a clean folder with upstream's layout."""
    make_benchmarks(folder / "eval", count=4, seed=1)
    return folder / "eval"


def test_quickstart(folder: Path, first: subprocess.CompletedProcess) -> None:
    for expected in ("color", "yesno", "average", "visual tokens", "17", "s/step, stage 2", "One question about"):
        assert expected in first.stdout
    lines = first.stdout.strip().splitlines()
    command = next(line for line in lines if ".venv/bin/python -m llava.serve.cli --model-path" in line)
    assert lines[-1].endswith("bash scripts/demo.sh")
    second = quickstart(folder)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "stage 1" not in second.stdout.replace("s/step, stage 1", "")
    assert "average" in second.stdout

    chat = subprocess.run(
        command.strip().split(), cwd=REPOSITORY, input="What color is the shape on the left?\n\n",
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert chat.returncode == 0, chat.stderr
    assert "exit..." in chat.stdout


# --- scripts/v1_5/eval on the model ---

CKPT = "llava-acformer"
GQA = "gqa/answers/llava_gqa_testdev_balanced/llava-acformer"
VQAV2 = "vqav2/answers/llava_vqav2_mscoco_test-dev2015/llava-acformer"
QBENCH = "qbench/llvisionqa"

# script and its arguments -> files that it must write below the benchmarks' folder, with their number of lines
SCRIPTS: dict[str, dict[str, int | None]] = {
    "vqav2.sh": {f"{VQAV2}/3_0.jsonl": 1, f"{VQAV2}/3_1.jsonl": 1, f"{VQAV2}/3_2.jsonl": 0, f"{VQAV2}/merge.jsonl": 2,
                 f"vqav2/answers_upload/llava_vqav2_mscoco_test-dev2015/{CKPT}.json": None},
    "gqa.sh": {f"{GQA}/3_0.jsonl": 2, f"{GQA}/3_1.jsonl": 2, f"{GQA}/3_2.jsonl": 0, f"{GQA}/merge.jsonl": 4,
               "gqa/data/testdev_balanced_predictions.json": None},
    "seed.sh": {f"seed_bench/answers/{CKPT}/merge.jsonl": 4, f"seed_bench/answers_upload/{CKPT}.jsonl": 4},
    "vizwiz.sh": {f"vizwiz/answers/{CKPT}.jsonl": 4, f"vizwiz/answers_upload/{CKPT}.json": None},
    "textvqa.sh": {f"textvqa/answers/{CKPT}.jsonl": 4},
    "pope.sh": {f"pope/answers/{CKPT}.jsonl": 12},
    "mme.sh": {f"MME/answers/{CKPT}.jsonl": 30, f"MME/eval_tool/answers/{CKPT}/color.txt": 8},
    "sqa.sh": {f"scienceqa/answers/{CKPT}.jsonl": 4, f"scienceqa/answers/{CKPT}_output.jsonl": None,
               f"scienceqa/answers/{CKPT}_result.json": None},
    "mmbench.sh": {f"mmbench/answers/mmbench_dev_20230712/{CKPT}.jsonl": 16,
                   f"mmbench/answers_upload/mmbench_dev_20230712/{CKPT}.xlsx": None},
    "mmbench_cn.sh": {f"mmbench_cn/answers/mmbench_dev_cn_20231003/{CKPT}.jsonl": 16,
                      f"mmbench_cn/answers_upload/mmbench_dev_cn_20231003/{CKPT}.xlsx": None},
    "mmvet.sh": {f"mm-vet/answers/{CKPT}.jsonl": 4, f"mm-vet/results/{CKPT}.json": None},
    "llavabench.sh": {f"llava-bench-in-the-wild/answers/{CKPT}.jsonl": 4,
                      f"llava-bench-in-the-wild/reviews/{CKPT}.jsonl": 4},
    "qbench.sh dev": {f"{QBENCH}_dev_answers.jsonl": 4},
    "qbench.sh test": {f"{QBENCH}_test_answers.jsonl": 4},
    "qbench_zh.sh dev": {f"{QBENCH}_zh_dev_answers.jsonl": 4},
    "qbench_zh.sh test": {f"{QBENCH}_zh_test_answers.jsonl": 4},
}  # fmt: skip
CHUNKED = ("vqav2.sh", "gqa.sh", "seed.sh")


def test_every_script_is_here() -> None:
    scripts = {path.name for path in (REPOSITORY / "scripts/v1_5/eval").glob("*.sh")}
    assert scripts == {name.split()[0] for name in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluation_script(script: str, folder: Path, first: subprocess.CompletedProcess, benchmarks: Path) -> None:
    with judge_double(lambda message: "8 6\nFine." if "[Question]" in message else "0.5") as judge:
        environment = os.environ | {
            "MODEL": str(folder / "runs" / CKPT), "EVAL": str(benchmarks), "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "0,1,2" if script in CHUNKED else "0",
            "JUDGE_BASE_URL": judge.base_url, "JUDGE_MODEL": "double", "OPENAI_API_KEY": "none",
        }  # fmt: skip
        command = ["bash", *f"scripts/v1_5/eval/{script}".split(), "--batch-size", "16"]
        result = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    assert result.returncode == 0, result.stdout + result.stderr
    for name, lines in SCRIPTS[script].items():
        text = (benchmarks / name).read_bytes()
        assert lines is None or len(text.splitlines()) == lines, name
    if "qbench" not in script:
        scores = list((benchmarks / next(iter(SCRIPTS[script])).split("/")[0]).glob(f"scores/{CKPT}.json"))
        assert [set(json.loads(path.read_text())) > {"score", "items", "run"} for path in scores] == [True]


def test_chunks_are_joined_in_order(benchmarks: Path) -> None:
    """As the questions stand in their file."""
    for folder, questions in ((GQA, "gqa/llava_gqa_testdev_balanced.jsonl"), (VQAV2, None)):
        rows = [json.loads(line) for line in (benchmarks / folder / "merge.jsonl").read_text().splitlines()]
        parts = "".join((benchmarks / folder / f"3_{index}.jsonl").read_text() for index in range(3))
        assert (benchmarks / folder / "merge.jsonl").read_text() == parts
        if questions:
            asked = [json.loads(line) for line in (benchmarks / questions).read_text().splitlines()]
            assert [row["question_id"] for row in rows] == [row["question_id"] for row in asked]


def test_report_of_all(benchmarks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llava.eval.report", str(benchmarks), "--out", str(tmp_path / "report.md")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "missing" not in result.stdout
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"- {CKPT}: connector acformer; num_visual_tokens 17; conv_mode vicuna_v1; temperature 0.0" in text
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_a_failing_chunk_fails_the_script(folder: Path, first: subprocess.CompletedProcess, tmp_path: Path) -> None:
    """Nothing is joined then; --resume asks what was missing."""
    make_benchmarks(tmp_path, count=4, seed=1)
    image = tmp_path / "gqa/data/images/n000003.jpg"
    kept = image.read_bytes()
    image.unlink()
    environment = os.environ | {
        "MODEL": str(folder / "runs" / CKPT), "EVAL": str(tmp_path), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }  # fmt: skip

    def gqa(*flags: str) -> subprocess.CompletedProcess:
        command = ["bash", "scripts/v1_5/eval/gqa.sh", "--batch-size", "16", *flags]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)

    broken = gqa()
    assert broken.returncode == 1
    assert "n000003.jpg' does not exist" in broken.stderr and "chunk 1 of 2 failed" in broken.stderr
    assert "chunk 0 of 2 failed" not in broken.stderr
    merged = tmp_path / "gqa/answers/llava_gqa_testdev_balanced" / CKPT / "merge.jsonl"
    assert not merged.exists()
    image.write_bytes(kept)
    mended = gqa("--resume")
    assert mended.returncode == 0, mended.stderr
    assert len(merged.read_text().splitlines()) == 4
