"""The playground's benchmarks: same arguments, same files; and right answers score 100 % by every scorer."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.eval.score import BENCHMARKS
from llava.eval.scoring.scorer import run_scorer
from playground.make_benchmarks import STAMP, make_benchmarks
from playground.tasks.answer_formats import LETTER_ANSWER, SHORT_ANSWER
from tests.conftest import REPOSITORY

COUNT = 6


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "eval"
    assert make_benchmarks(folder, COUNT, seed=5)
    return folder


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_arguments_give_the_same_bytes(benchmarks: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert make_benchmarks(again, COUNT, seed=5)
    assert _bytes(again) == _bytes(benchmarks)
    assert not make_benchmarks(again, COUNT, seed=5)
    with pytest.raises(ValueError, match="benchmarks of other arguments"):
        make_benchmarks(again, COUNT, seed=6)
    assert _bytes(again) == _bytes(benchmarks)
    assert make_benchmarks(tmp_path / "other", COUNT, seed=6)
    assert _bytes(tmp_path / "other") != _bytes(benchmarks)
    with pytest.raises(ValueError, match="at least 1"):
        make_benchmarks(tmp_path, 0, seed=5)


def test_an_interrupted_run_is_finished(benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("playground.make_benchmarks.WRITERS", {"pope": lambda *_: (_ for _ in ()).throw(OSError)})
        with pytest.raises(OSError):
            make_benchmarks(tmp_path, COUNT, seed=5)
    assert make_benchmarks(tmp_path, COUNT, seed=5)
    assert _bytes(tmp_path) == _bytes(benchmarks)


def test_the_real_benchmarks_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "playground.make_benchmarks", "--out", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1 and "holds other files, perhaps the real benchmarks" in result.stderr
    assert not (tmp_path / STAMP).exists()


def test_questions_ask_as_the_benchmarks_do(benchmarks: Path) -> None:
    short = ("pope/llava_pope_test", "MME/llava_mme", "gqa/llava_gqa_testdev_balanced", "vizwiz/llava_test")
    for name in (*short, "textvqa/llava_textvqa_val_v051_ocr", "vqav2/llava_vqav2_mscoco_test2015"):
        assert all(row["text"].endswith(SHORT_ANSWER) for row in _lines(benchmarks / f"{name}.jsonl")), name
    assert all(row["text"].endswith(LETTER_ANSWER) for row in _lines(benchmarks / "seed_bench/llava-seed-bench.jsonl"))


# --- right answers ---

Answers = list[tuple[Any, str, str]]  # question id, prompt, reply


def _pope(folder: Path) -> Answers:
    labels = [row["label"] for name in ("adversarial", "popular", "random")
              for row in _lines(folder / f"coco/coco_pope_{name}.json")]  # fmt: skip
    questions = _lines(folder / "llava_pope_test.jsonl")
    return [(row["question_id"], row["text"], label) for row, label in zip(questions, labels, strict=True)]


def _mme(folder: Path) -> Answers:
    release = folder / "MME_Benchmark_release_version"
    answers = []
    for row in _lines(folder / "llava_mme.jsonl"):
        assert (release / row["image"]).is_file()
        task, name = row["question_id"].split("/")
        place = release / task / "questions_answers_YN" if task == "position" else release / task
        lines = (place / name).with_suffix(".txt").read_text().splitlines()
        given = dict(line.split("\t") for line in lines)
        question = row["text"].removesuffix(SHORT_ANSWER)
        answers.append((row["question_id"], row["text"], given[f"{question} Please answer yes or no."]))
    return answers


def _gqa(folder: Path) -> Answers:
    questions = json.loads((folder / "data/testdev_balanced_questions.json").read_text())
    return [(name, row["question"], row["answer"].capitalize() + ".") for name, row in questions.items()]


def _vqav2(folder: Path) -> Answers:
    rows = json.loads((folder / "v2_mscoco_test-dev2015_annotations.json").read_text())["annotations"]
    return [(row["question_id"], "", row["multiple_choice_answer"]) for row in rows]


def _most_frequent(answers: list[str]) -> str:
    return max(answers, key=answers.count)


def _vizwiz(folder: Path) -> Answers:
    rows = json.loads((folder / "test.json").read_text())
    replies = {row["image"]: _most_frequent([entry["answer"] for entry in row["answers"]]) for row in rows}
    return [(row["question_id"], row["text"], replies[row["image"]]) for row in _lines(folder / "llava_test.jsonl")]


def _textvqa(folder: Path) -> Answers:
    rows = {row["image_id"]: row for row in json.loads((folder / "TextVQA_0.5.1_val.json").read_text())["data"]}
    questions = _lines(folder / "llava_textvqa_val_v051_ocr.jsonl")
    return [(q["question_id"], q["text"], _most_frequent(rows[q["question_id"]]["answers"])) for q in questions]


def _scienceqa(folder: Path) -> Answers:
    problems = json.loads((folder / "problems.json").read_text())
    return [(name, "<image>" * (row["image"] is not None), "ABCD"[row["answer"]]) for name, row in problems.items()]


def _mmbench(folder: Path) -> Answers:
    csv.field_size_limit(10**7)
    with (folder / "mmbench_dev_20230712.tsv").open(encoding="utf-8") as file:
        return [(int(row["index"]), "", row["answer"]) for row in csv.DictReader(file, delimiter="\t")]


SCORERS: dict[str, tuple[str, Callable[[Path], Answers], dict[str, str], float]] = {
    "pope": ("pope", _pope, {"--annotation-dir": "coco", "--question-file": "llava_pope_test.jsonl"}, 100),
    "MME": ("mme", _mme, {"--data-dir": "MME_Benchmark_release_version"}, 800),
    "gqa": ("gqa", _gqa, {"--question-file": "data/testdev_balanced_questions.json"}, 100),
    "vqav2": ("vqa", _vqav2, {"--annotation-file": "v2_mscoco_test-dev2015_annotations.json"}, 100),
    "vizwiz": ("vqa", _vizwiz, {"--annotation-file": "test.json", "--question-file": "llava_test.jsonl"}, 100),
    "textvqa": ("textvqa", _textvqa, {"--annotation-file": "TextVQA_0.5.1_val.json"}, 100),
    "scienceqa": (
        "science_qa", _scienceqa, {"--base-dir": "", "--output-file": "o.json", "--output-result": "r.json"}, 100
    ),
    "mmbench": ("mmbench", _mmbench, {"--annotation-file": "mmbench_dev_20230712.tsv"}, 100),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORERS)
def test_right_answers_score_all_points(name: str, benchmarks: Path, tmp_path: Path) -> None:
    scorer, answer, flags, score = SCORERS[name]
    rows = [{"question_id": id_, "prompt": prompt, "text": text} for id_, prompt, text in answer(benchmarks / name)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--result-file", str(tmp_path / "a.jsonl"), "--score-file", str(tmp_path / "s.json")]
    for flag, value in flags.items():
        argv += [flag, str((tmp_path if "output" in flag else benchmarks / name) / value)]
    run_scorer(BENCHMARKS[scorer], argv)
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["score"] == pytest.approx(score)
    assert written["answered"] == written["expected"]


def test_right_letters_of_seed(benchmarks: Path, tmp_path: Path) -> None:
    annotation = benchmarks / "seed_bench/SEED-Bench.json"
    questions = json.loads(annotation.read_text())["questions"]
    assert {question["data_type"] for question in questions} == {"image", "video"}
    rows = [{"question_id": question["question_id"], "text": question["answer"]} for question in questions]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = subprocess.run(
        [sys.executable, "scripts/convert_seed_for_submission.py", "--annotation-file", str(annotation),
         "--result-file", str(tmp_path / "a.jsonl"), "--result-upload-file", str(tmp_path / "up/u.jsonl")],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Total accuracy: 100.00%\nimage accuracy: 100.00%\nvideo accuracy: 100.00%" in result.stdout


def test_scienceqa_prompts_are_those_of_the_converter(benchmarks: Path, tmp_path: Path) -> None:
    for name in ("problems.json", "pid_splits.json"):
        (tmp_path / name).write_bytes((benchmarks / "scienceqa" / name).read_bytes())
    result = subprocess.run(
        [sys.executable, "scripts/convert_sqa_to_llava.py", "convert_to_llava", "--base-dir", str(tmp_path),
         "--split", "test", "--prompt-format", "CQM-A"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ours, converted = (
        json.loads((folder / "llava_test_CQM-A.json").read_text()) for folder in (benchmarks / "scienceqa", tmp_path)
    )
    assert ours == converted
