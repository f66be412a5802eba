"""The shell scripts of evaluation: programs and files as in upstream's scripts, chunks, and signals.

The programs are doubles; tests/e2e/test_quickstart.py runs the real ones.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Records its command line; a generator then writes one line for its chunk, after SLEEP seconds.
DOUBLE = f"""#!{sys.executable}
import json, os, sys, time
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), sys.argv[1:]]) + "\\n")
if "--answers-file" in sys.argv:
    time.sleep(float(os.environ.get("SLEEP", 0)))
    path = sys.argv[sys.argv.index("--answers-file") + 1]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(os.path.basename(path) + "\\n")
"""

Calls = list[tuple[str | None, int, list[str]]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(DOUBLE)
    (tmp_path / "bin" / "python").chmod(0o755)
    unset = ("MODEL", "CKPT", "EVAL", "CONV_MODE", "SPLIT", "IMAGES", "CUDA_VISIBLE_DEVICES", "JUDGE_BASE_URL")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return kept | {"PATH": path, "CALLS": str(tmp_path / "calls"), "HOME": str(tmp_path)}


def _calls(environment: dict[str, str]) -> Calls:
    path = Path(environment["CALLS"])
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Calls]:
    def run_script(script: str, *flags: str, **settings: str) -> Calls:
        command = ["bash", str(REPOSITORY / "scripts" / script), *flags]
        subprocess.run(command, cwd=tmp_path, env=environment | settings, check=True, capture_output=True)
        return _calls(environment)

    return run_script


def _flags(call: list[str]) -> dict[str, str]:
    """Return flag -> words of a generator's command line."""
    flags: dict[str, str] = {}
    for word in call[2:]:
        if word.startswith("--"):
            name = word
            flags[name] = ""
        else:
            flags[name] = f"{flags[name]} {word}".strip()
    return flags


# Below ./playground/data/eval: generator; question file; image folder; answers file; other flags.
L13B = "llava-v1.5-13b"
TEST_DEV = "llava_vqav2_mscoco_test-dev2015"
GQA = "llava_gqa_testdev_balanced"
LETTER = {"--single-pred-prompt": ""}
GENERATORS = {
    "vqav2.sh": ("loader", f"vqav2/{TEST_DEV}.jsonl", "vqav2/test2015", f"vqav2/answers/{TEST_DEV}/{L13B}/1_0.jsonl"),
    "gqa.sh": ("loader", f"gqa/{GQA}.jsonl", "gqa/data/images", f"gqa/answers/{GQA}/{L13B}/1_0.jsonl"),
    "seed.sh": ("loader", "seed_bench/llava-seed-bench.jsonl", "seed_bench", f"seed_bench/answers/{L13B}/1_0.jsonl"),
    "vizwiz.sh": ("loader", "vizwiz/llava_test.jsonl", "vizwiz/test", f"vizwiz/answers/{L13B}.jsonl"),
    "textvqa.sh": ("loader", "textvqa/llava_textvqa_val_v051_ocr.jsonl", "textvqa/train_images",
                   f"textvqa/answers/{L13B}.jsonl"),
    "pope.sh": ("loader", "pope/llava_pope_test.jsonl", "pope/val2014", f"pope/answers/{L13B}.jsonl"),
    "mme.sh": ("loader", "MME/llava_mme.jsonl", "MME/MME_Benchmark_release_version", f"MME/answers/{L13B}.jsonl"),
    "sqa.sh": ("science", "scienceqa/llava_test_CQM-A.json", "scienceqa/images/test",
               f"scienceqa/answers/{L13B}.jsonl", LETTER),
    "mmbench.sh": ("mmbench", "mmbench/mmbench_dev_20230712.tsv", None,
                   f"mmbench/answers/mmbench_dev_20230712/{L13B}.jsonl", LETTER),
    "mmbench_cn.sh": ("mmbench", "mmbench_cn/mmbench_dev_cn_20231003.tsv", None,
                      f"mmbench_cn/answers/mmbench_dev_cn_20231003/{L13B}.jsonl", LETTER | {"--lang": "cn"}),
    "mmvet.sh": ("", "mm-vet/llava-mm-vet.jsonl", "mm-vet/images", f"mm-vet/answers/{L13B}.jsonl"),
    "llavabench.sh": ("", "llava-bench-in-the-wild/questions.jsonl", "llava-bench-in-the-wild/images",
                      f"llava-bench-in-the-wild/answers/{L13B}.jsonl"),
}  # fmt: skip

# Words of the next command line, which reads the answers, in this order.
UPLOAD = "answers_upload"
SCORERS = {
    "vqav2.sh": ["convert_vqav2_for_submission.py", f"--split {TEST_DEV}", f"--ckpt {L13B}"],
    "gqa.sh": ["convert_gqa_for_eval.py", f"--src @/gqa/answers/{GQA}/{L13B}/merge.jsonl",
               "--dst @/gqa/data/testdev_balanced_predictions.json"],
    "seed.sh": ["convert_seed_for_submission.py", "--annotation-file @/seed_bench/SEED-Bench.json",
                f"--result-file @/seed_bench/answers/{L13B}/merge.jsonl",
                f"--result-upload-file @/seed_bench/{UPLOAD}/{L13B}.jsonl"],
    "vizwiz.sh": ["convert_vizwiz_for_submission.py", "--annotation-file @/vizwiz/llava_test.jsonl",
                  f"--result-file @/vizwiz/answers/{L13B}.jsonl",
                  f"--result-upload-file @/vizwiz/{UPLOAD}/{L13B}.json"],
    "textvqa.sh": ["llava.eval.eval_textvqa", "--annotation-file @/textvqa/TextVQA_0.5.1_val.json",
                   f"--result-file @/textvqa/answers/{L13B}.jsonl"],
    "pope.sh": ["eval_pope", "--annotation-dir @/pope/coco", "--question-file @/pope/llava_pope_test.jsonl",
                f"--result-file @/pope/answers/{L13B}.jsonl"],
    "mme.sh": [f"--result-file @/MME/answers/{L13B}.jsonl", f"--results-dir @/MME/eval_tool/answers/{L13B}"],
    "sqa.sh": ["eval_science_qa", "--base-dir @/scienceqa", f"--result-file @/scienceqa/answers/{L13B}.jsonl",
               f"--output-file @/scienceqa/answers/{L13B}_output.jsonl",
               f"--output-result @/scienceqa/answers/{L13B}_result.json"],
    "mmbench.sh": ["convert_mmbench_for_submission.py", "--annotation-file @/mmbench/mmbench_dev_20230712.tsv",
                   "--result-dir @/mmbench/answers/mmbench_dev_20230712",
                   f"--upload-dir @/mmbench/{UPLOAD}/mmbench_dev_20230712", f"--experiment {L13B}"],
    "mmbench_cn.sh": ["convert_mmbench_for_submission.py",
                      "--annotation-file @/mmbench_cn/mmbench_dev_cn_20231003.tsv",
                      "--result-dir @/mmbench_cn/answers/mmbench_dev_cn_20231003",
                      f"--upload-dir @/mmbench_cn/{UPLOAD}/mmbench_dev_cn_20231003", f"--experiment {L13B}"],
    "mmvet.sh": ["convert_mmvet_for_eval.py", f"--src @/mm-vet/answers/{L13B}.jsonl",
                 f"--dst @/mm-vet/results/{L13B}.json"],
    "llavabench.sh": ["eval_gpt_review_bench", "--question @/llava-bench-in-the-wild/questions.jsonl",
                      "--context @/llava-bench-in-the-wild/context.jsonl", "llava/eval/table/rule.json --answer-list",
                      "--answer-list @/llava-bench-in-the-wild/answers_gpt4.jsonl "
                      f"@/llava-bench-in-the-wild/answers/{L13B}.jsonl",
                      f"--output @/llava-bench-in-the-wild/reviews/{L13B}.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("script", GENERATORS)
def test_paths_and_flags_are_upstream_s(script: str, run: Callable[..., Calls]) -> None:
    name, questions, images, answers, *more = GENERATORS[script]
    data = "./playground/data/eval"
    calls = [words for _, _, words in run(f"v1_5/eval/{script}")]
    module = "llava.eval.model_vqa" + (f"_{name}" if name else "")
    expected = {
        "--model-path": "liuhaotian/llava-v1.5-13b", "--temperature": "0", "--conv-mode": "vicuna_v1",
        "--question-file": f"{data}/{questions}", "--answers-file": f"{data}/{answers}", "--record-run": "",
    } | (more[0] if more else {})  # fmt: skip
    expected |= {"--image-folder": f"{data}/{images}"} if images else {}
    expected |= {"--num-chunks": "1", "--chunk-idx": "0"} if answers.endswith("1_0.jsonl") else {}
    assert calls[0][:2] == ["-m", module]
    assert _flags(calls[0]) == expected
    scorer = " ".join(calls[1]).replace(data, "@")
    places = [scorer.find(words) for words in SCORERS[script]]
    assert -1 not in places and places == sorted(places), scorer


@pytest.mark.parametrize(
    ("script", "questions", "answers"),
    [
        ("qbench.sh dev", "llvisionqa_dev", "llvisionqa_dev_answers"),
        ("qbench.sh test", "llvisionqa_test", "llvisionqa_test_answers"),
        ("qbench_zh.sh dev", "质衡-问答-验证集", "llvisionqa_zh_dev_answers"),
        ("qbench_zh.sh test", "质衡-问答-测试集", "llvisionqa_zh_test_answers"),
    ],
)
def test_qbench(script: str, questions: str, answers: str, run: Callable[..., Calls]) -> None:
    file, split = script.split()
    [(_, _, call)] = run(f"v1_5/eval/{file}", split)
    data = "./playground/data/eval/qbench"
    assert call[:2] == ["-m", "llava.eval.model_vqa_qbench"]
    assert _flags(call) == {
        "--model-path": "liuhaotian/llava-v1.5-13b", "--image-folder": f"{data}/images_llvisionqa/",
        "--questions-file": f"{data}/{questions}.json", "--answers-file": f"{data}/{answers}.jsonl",
        "--conv-mode": "llava_v1", "--lang": "zh" if "zh" in file else "en",
    }  # fmt: skip


def test_flags_come_last_and_a_checkpoint_is_named_after_its_run(tmp_path: Path, run: Callable[..., Calls]) -> None:
    """Otherwise checkpoint-500 of two runs would write the same files."""
    calls = run("v1_5/eval/pope.sh", "--limit", "3", MODEL="checkpoints/my run/checkpoint-500/", EVAL="~/my data")
    assert calls[0][2][-2:] == ["--limit", "3"]
    assert f"{tmp_path}/my data/pope/answers/my run_checkpoint-500.jsonl" in calls[0][2]
    assert f"{tmp_path}/my data/pope/scores/my run_checkpoint-500.json" in calls[1][2]


@pytest.mark.parametrize("devices", [None, "3", "5,7", ""])
def test_a_chunk_for_each_device(devices: str | None, tmp_path: Path, run: Callable[..., Calls]) -> None:
    """An empty CUDA_VISIBLE_DEVICES hides all devices. The joined file has the same mode as the others."""
    calls = run("v1_5/eval/seed.sh", EVAL="data", **({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}))
    expected = ["0"] if devices is None else devices.split(",")
    assert sorted(device for device, _, words in calls if "--chunk-idx" in words) == expected
    folder = tmp_path / "data/seed_bench/answers/llava-v1.5-13b"
    parts = [f"{len(expected)}_{index}.jsonl" for index in range(len(expected))]
    assert sorted(os.listdir(folder)) == sorted([*parts, "merge.jsonl"])
    assert (folder / "merge.jsonl").read_text().splitlines() == parts
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in ("merge.jsonl", parts[0])}
    assert len(modes) == 1


@pytest.mark.parametrize("script", ["v1_5/eval/gqa.sh", "sqa_eval_batch.sh"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_chunks_too(
    script: str, number: signal.Signals, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Ctrl-C signals the whole process group, but the shell starts background processes with SIGINT ignored."""
    settings = environment | {"EVAL": "data", "CUDA_VISIBLE_DEVICES": "0,1", "SLEEP": "60"}
    process = subprocess.Popen(
        ["bash", str(REPOSITORY / "scripts" / script)], cwd=tmp_path, env=settings, start_new_session=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wanted = 2 if script.endswith("gqa.sh") else 8
        _wait_until(lambda: len(_calls(environment)) == wanted)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.wait(20) == 130
        _wait_until(lambda: not any(_lives(pid) for _, pid, _ in _calls(environment)))
    finally:
        for _, pid, _ in _calls(environment):
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Return True if the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
