"""Runs of an answer generator on a recorded model: failures, resuming, batches, and what is recorded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava.eval import model_vqa_loader
from llava.eval.answering.answerer import Answerer
from llava.eval.answering.options import DecodingOptions, RunOptions
from llava.eval.answering.queries import Query
from llava.eval.answering.run import answer_queries
from llava.program import RequestError
from tests.support.scoring import Capture, as_lines

MODEL = "checkpoints/llava-v1-tiny-mlp2x"


@pytest.fixture
def questions(llava_vectors: Path, tmp_path: Path) -> Path:
    """Five questions; the image of the fourth is missing."""
    rows = [
        {"question_id": index, "image": f"img{index}.png", "text": "What is this?" + index * " Really?"}
        for index in range(5)
    ]
    for name in ("img0.png", "img1.png", "img2.png", "img4.png"):
        shutil.copy(f"assets/images/{name}", tmp_path / name)
    path = tmp_path / "q.jsonl"
    path.write_text(as_lines(rows))
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Fail if a model is loaded."""
    monkeypatch.setattr(Answerer, "open", lambda *a: pytest.fail("loaded"))
    return monkeypatch


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _ask(questions: Path, answers: Path, *flags: str, num_workers: int = 0) -> list[dict[str, Any]]:
    argv = ["--model-path", MODEL, "--question-file", str(questions), "--image-folder", str(questions.parent)]
    argv += ["--answers-file", str(answers), "--temperature", "0", "--max_new_tokens", "4", *flags]
    model_vqa_loader.eval_model(model_vqa_loader.build_parser().parse_args(argv), num_workers=num_workers)
    return _read(answers)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, r"line 5: 'text' is not a text but 'None'"),
        ({"image": 5}, r"line 5: 'image' is not a text but '5'"),
        ({"question_id": [1]}, r"line 5: 'question_id' is not a text or a whole number"),  # scorers would refuse it
    ],
)
def test_questions_are_checked_before_a_model_is_loaded(
    change: dict[str, Any], message: str, questions: Path, tmp_path: Path
) -> None:
    *rows, last = _read(questions)
    questions.write_text(as_lines([*rows, last | change]))
    with pytest.raises(RequestError, match=f"q.jsonl, {message}"):
        _ask(questions, tmp_path / "a.jsonl")


@pytest.mark.usefixtures("no_model")
def test_a_chunk_without_questions_is_an_empty_file(questions: Path, tmp_path: Path) -> None:
    """The script that joins the chunks needs it."""
    assert _ask(questions, tmp_path / "out/4_3.jsonl", "--num-chunks", "4", "--chunk-idx", "3") == []


def test_an_unknown_template_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    run = RunOptions("/nowhere/m", str(tmp_path / "a"), "nope")
    with pytest.raises(RequestError, match="no conversation template 'nope'"):
        answer_queries([Query({"question_id": 1, "prompt": ""}, "")], run, DecodingOptions())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unusable_questions_are_named_and_left_out(
    questions: Path, tmp_path: Path, num_workers: int, capsys: Capture
) -> None:
    """The others are answered, the run ends with an error, and --resume asks the missing ones."""
    (tmp_path / "img4.png").write_bytes(b"no image")
    answers = tmp_path / "a.jsonl"
    with pytest.raises(RequestError, match=r"2 of 5 questions were not answered.*--resume"):
        _ask(questions, answers, "--batch-size", "2", num_workers=num_workers)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("question ")]
    assert [line.split(":")[0] for line in lines] == ["question 3", "question 4"]
    assert "img3.png' does not exist" in lines[0] and "img4.png' is not in a" in lines[1]
    first = answers.read_bytes()
    for name in ("img3.png", "img4.png"):
        shutil.copy(f"assets/images/{name}", tmp_path / name)
    resumed = _ask(questions, answers, "--resume", num_workers=num_workers)
    assert answers.read_bytes().startswith(first)
    whole = _ask(questions, tmp_path / "b.jsonl", num_workers=num_workers)
    assert [(line["question_id"], line["text"]) for line in resumed] == [(q["question_id"], q["text"]) for q in whole]


def test_a_finished_run_is_not_repeated(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask(questions, tmp_path / "a.jsonl", "--limit", "3")
    before = (tmp_path / "a.jsonl").read_bytes()
    monkeypatch.setattr(Answerer, "open", lambda *a: pytest.fail("loaded"))
    assert len(_ask(questions, tmp_path / "a.jsonl", "--limit", "3", "--resume")) == 3
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_an_interrupted_run_is_continued(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier file is kept until the model is open."""
    answers = tmp_path / "a.jsonl"
    answers.write_text(as_lines([{"text": "of yesterday"}]))
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "open", lambda *a: (_ for _ in ()).throw(OSError("no such model")))
        with pytest.raises(OSError, match="no such model"):
            _ask(questions, answers, "--limit", "3")
    assert "of yesterday" in answers.read_text()
    answer_batch, batches = Answerer.answer_batch, []

    def interrupted(self: Answerer, examples: Any, decoding: DecodingOptions) -> list[str]:
        batches.append(examples)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return answer_batch(self, examples, decoding)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "answer_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ask(questions, answers, "--limit", "3")
    assert [line["question_id"] for line in _read(answers)] == [0, 1]
    assert [line["question_id"] for line in _ask(questions, answers, "--limit", "3", "--resume")] == [0, 1, 2]


def test_resuming_a_finished_run_with_other_flags_is_refused(questions: Path, tmp_path: Path) -> None:
    """Its answers would be scored as if the new flags had made them."""
    flags = ["--limit", "1", "--record-run"]
    _ask(questions, tmp_path / "a.jsonl", *flags)
    for other in (["--num_beams", "2"], ["--mm_projector_type", "pooling"]):
        with pytest.raises(RequestError, match=f"made with .* instead of {other[1]}; give the first"):
            _ask(questions, tmp_path / "a.jsonl", *flags, *other, "--resume")


def test_budgets_are_compared_as_the_model_rounds_them(questions: Path, tmp_path: Path) -> None:
    """E-ViT has one token more than its nominal budget."""
    flags = ["--limit", "2", "--record-run", "--mm_projector_type", "evit"]
    first = _ask(questions, tmp_path / "a.jsonl", *flags, "--mm_num_visual_tokens", "5")
    assert first[0]["metadata"]["num_visual_tokens"] == 6
    (tmp_path / "a.jsonl").write_text(as_lines(first[:1]))
    for _ in range(2):  # a part of the answers, then all of them
        assert len(_ask(questions, tmp_path / "a.jsonl", *flags, "--mm_num_visual_tokens", "5", "--resume")) == 2
        with pytest.raises(RequestError, match="num_visual_tokens 6 instead of 10"):
            _ask(questions, tmp_path / "a.jsonl", *flags, "--mm_num_visual_tokens", "9", "--resume")


def test_recorded_runs(questions: Path, tmp_path: Path) -> None:
    plain, recorded = (
        _ask(questions, tmp_path / "a.jsonl", "--limit", "2", *flags) for flags in ((), ("--record-run",))
    )
    assert [line["metadata"] for line in plain] == [{}, {}]
    for line in recorded:
        assert line["metadata"].pop("seconds") > 0
        assert line["metadata"] == {
            **{"device": "cpu", "dtype": "float32", "connector": "mlp2x_gelu", "num_visual_tokens": 16},
            **{"conv_mode": "llava_v1", "batch_size": 1},
            **{"temperature": 0.0, "top_p": None, "num_beams": 1, "max_new_tokens": 4},
        }


def test_callers_may_leave_out_our_flags(questions: Path, tmp_path: Path) -> None:
    """Programs that build the arguments of upstream's eval_model keep working."""
    args = SimpleNamespace(
        **{"model_path": MODEL, "model_base": None, "image_folder": str(tmp_path), "question_file": str(questions)},
        **{"answers_file": str(tmp_path / "a.jsonl"), "conv_mode": "vicuna_v1", "num_chunks": 3, "chunk_idx": 0},
        **{"temperature": 0, "top_p": None, "num_beams": 1, "max_new_tokens": 3},
    )
    model_vqa_loader.eval_model(args, num_workers=0)
    assert len(_read(tmp_path / "a.jsonl")) == 2
