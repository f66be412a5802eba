"""Damaged input of scorers and converters ends in one error that names the file, never in a traceback.

Random values in the JSON of valid input are replaced or removed.
"""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.eval.score import BENCHMARKS
from llava.eval.scoring.scorer import run_scorer
from llava.program import USER_ERRORS, RequestError
from tests.conftest import VECTORS
from tests.support.recorded_runs import RUNS
from tests.support.scoring import as_lines, program

VECTORS_OF = VECTORS / "llava/eval"
DAMAGES = (
    *(None, 1, -1, 7.5, True, 10**400, 1e400),
    *("", "x", "Yes", "a\tb\nc", "9" * 5000, "\ud800"),
    *([], {}, ["x"], {"x": 1}),
)

VQA = {"annotations": [{"question_id": 1, "answer_type": "other", "answers": [{"answer": "a"}, {"answer": "b"}]}]}
GQA = {"1": {"answer": "yes", "isBalanced": True, "types": {"structural": "verify", "semantic": "attr"}}}
HALLUSION = {"category": "VD", "subcategory": "x", "set_id": "0", "figure_id": "0", "question_id": "0"}
MMMU = {"id": "val_Art_1", "question_type": "multiple-choice", "answer": "A", "index2ans": {"A": "x", "B": "y"}}
OPEN = {"id": "val_Art_2", "question_type": "open", "answer": ["3", "x"], "response": "it is 3"}
MME = {"question_id": "count/1.png", "prompt": "Is it?", "text": "Yes"}

# Program -> flags and files; a list is written as JSON lines, anything else as JSON.
SMALL: dict[str, dict[str, Any]] = {
    "gqa": {"--question-file": GQA, "--result-file": [{"question_id": "1", "text": "Yes"}]},
    "vqa": {"--annotation-file": VQA, "--result-file": [{"question_id": 1, "text": "a"}]},
    "hallusionbench": {
        "--annotation-file": {"wrap": [HALLUSION | {"gt_answer": "1"}]},
        "--result-file": [{"question_id": "VD_x_0_0_0", "text": "Yes"}],
    },
    "mmmu": {
        "--annotation-file": {"wrap": [MMMU, OPEN]},
        "--result-file": [{"question_id": "val_Art_1", "text": "A"}, {"question_id": "val_Art_2", "text": "3"}],
    },
    "mme": {"--result-file": [MME, MME | {"prompt": "Is it not?"}]},
    "mmbench": {"--result-file": [{"question_id": 1, "round_id": 0, "text": "A"}]},
}
RECORDED = [
    "eval_pope_random",
    "eval_science_qa",
    "eval_textvqa_one",
    "convert_seed",
    "convert_gqa",
    "convert_mmvet",
    "convert_vizwiz",
    "convert_vqav2",
    "convert_mmbench",
    "convert_sqa_to_llava_QCM-LEA",
]


def _damaged(value: Any, chance: random.Random) -> Any:
    """Return a copy with one value replaced or removed."""
    value = copy.deepcopy(value)
    place = value
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        child = place[key]
        if isinstance(child, (dict, list)) and child and chance.random() < 0.8:
            place = child
        elif chance.random() < 0.3:
            del place[key]
            return value
        else:
            place[key] = chance.choice(DAMAGES)
            return value


def _damage_file(path: Path, chance: random.Random) -> None:
    text = path.read_text()
    try:
        path.write_text(json.dumps(_damaged(json.loads(text), chance)))
    except json.JSONDecodeError:
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        path.write_text(as_lines(_damaged(rows, chance)))


def _program(target: str) -> Callable[[list[str]], None]:
    return program(target if target.startswith("scripts/") else f"{target.replace('.', '/')}.py")


def _assert_ends_well(run: Callable[[list[str]], None], argv: list[str]) -> bool:
    """Run a program; return True if it refused its input with one line."""
    try:
        run(argv)
    except USER_ERRORS as error:
        assert str(error)
        assert "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_input(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, chance, refused = _program(RUNS[name]["target"]), random.Random(name), 0
    shutil.copytree(VECTORS_OF, tmp_path / "eval")
    inputs = sorted(_inputs(RUNS[name], tmp_path))
    assert inputs
    for _ in range(60):
        path = chance.choice(inputs)
        intact = path.read_text()
        _damage_file(path, chance)
        refused += _assert_ends_well(run, RUNS[name]["argv"])
        path.write_text(intact)
    assert refused


def _inputs(run: dict[str, Any], folder: Path) -> set[Path]:
    """Return the JSON files among the arguments of a recorded run, and in folders among them."""
    found: set[Path] = set()
    outputs = {folder / output for output in run["outputs"]}
    for word in run["argv"]:
        path = folder / word
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            found.add(path)
        elif path.is_dir():
            found |= {file for file in path.glob("**/*.json*") if "answers_upload" not in str(file)}
    if "eval_science_qa" in run["name"] or "sqa" in run["name"]:
        found = {path for path in found if path.name in ("pid_splits.json", "problems.json", "pred.jsonl")}
    return found - outputs


@pytest.mark.parametrize("name", SMALL)
def test_small_input(name: str, tmp_path: Path) -> None:
    extra: list[str] = []
    if name == "mmbench":
        pytest.importorskip("pandas")
        (tmp_path / "t.tsv").write_text("index\tquestion\tA\tB\tanswer\n1\tq\tx\ty\tA\n")
        extra = ["--annotation-file", str(tmp_path / "t.tsv")]
    if name == "mme":
        (tmp_path / "MME/count").mkdir(parents=True)
        (tmp_path / "MME/count/1.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
        extra = ["--data-dir", str(tmp_path / "MME")]
    chance, refused = random.Random(name), 0

    def run(argv: list[str]) -> None:
        run_scorer(BENCHMARKS[name], argv)

    assert not _assert_ends_well(run, [*_written(SMALL[name], tmp_path), *extra])
    for _ in range(150):
        flag = chance.choice(list(SMALL[name]))
        files = SMALL[name] | {flag: _damaged(SMALL[name][flag], chance)}
        refused += _assert_ends_well(run, [*_written(files, tmp_path), *extra])
    assert refused


def _written(files: dict[str, Any], folder: Path) -> list[str]:
    argv = []
    for flag, content in files.items():
        path = folder / f"{flag.strip('-')}.json"
        if isinstance(content, list):
            path.write_text(as_lines(content))
        else:
            path.write_text(json.dumps(content.get("wrap", content) if isinstance(content, dict) else content))
        argv += [flag, str(path)]
    return argv


@pytest.mark.parametrize("name", ["eval_pope_random", "eval_textvqa_one", "convert_seed"])
def test_an_answer_that_is_no_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(VECTORS_OF, tmp_path / "eval")
    argv = RUNS[name]["argv"]
    path = tmp_path / argv[argv.index("--result-file") + 1]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["text"] = None
    path.write_text(as_lines(rows))
    with pytest.raises(RequestError, match=r"line 2: 'text' is not a text"):
        _program(RUNS[name]["target"])(argv)
