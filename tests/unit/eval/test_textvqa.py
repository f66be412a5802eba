"""TextVQA: human accuracy, and notes about prompts and missing answers."""

from pathlib import Path

import pytest

from llava.eval.eval_textvqa import build_parser, eval_single, main
from llava.eval.scoring.accuracy import human_accuracy
from llava.eval.scoring.score_file import read_score_file
from llava.eval.scoring.short_answers import TextVQAAccuracyEvaluator
from llava.eval.scoring.textvqa import shows_ocr
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_lines, write_files


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_human_accuracy(matches: int, accuracy: float) -> None:
    assert human_accuracy(matches) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "humans", "accuracy"),
    [
        ("The STOP!", ["stop"] * 10, 1),
        ("stop", ["Stop."] * 2 + ["a stop"] * 2 + ["go"] * 6, 1),
        ("ten", ["10"] + ["ten"] + ["go"] * 8, 0.6),
        ("", ["stop"] * 10, 0),
        ("stop sign", ["stop"] * 10, 0),
    ],
)
def test_accuracy_of_an_answer(answer: str, humans: list[str], accuracy: float) -> None:
    assert TextVQAAccuracyEvaluator().score(answer, humans) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("OCR tokens: a. Question: q? Short answer:", True),
        ("Q?\nReference OCR token: a, b\nAnswer.", True),
        ("Q?\nAnswer.", False),
    ],
)
def test_whether_ocr_tokens_were_shown(prompt: str, shown: bool) -> None:
    assert shows_ocr(prompt) is shown


def _files(folder: Path, prompts: list[tuple[str, str]]) -> tuple[str, str]:
    data = [{"image_id": f"i{n}", "question": "What Is It?", "answers": ["stop"] * 10} for n in range(3)]
    rows = as_lines({"question_id": image, "prompt": prompt, "text": "Stop"} for image, prompt in prompts)
    _, annotations, _, answers = write_files(folder, {"--annotation-file": {"data": data}, RESULTS: rows})
    return annotations, answers


PLAIN, OCR = "what is it?\nAnswer.", "what is it?\nReference OCR token: a\nAnswer."


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([PLAIN] * 3, "OCR tokens in the prompt: no\n"),
        ([OCR] * 3, "OCR tokens in the prompt: yes\n"),
        ([OCR, PLAIN, OCR], "OCR tokens in the prompt: in 2 of 3 (mixed)\n"),
    ],
)
def test_ocr_tokens_are_noted(prompts: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    eval_single(*_files(tmp_path, [(f"i{n}", prompt) for n, prompt in enumerate(prompts)]))
    output = capsys.readouterr()
    assert output.out == "model\nSamples: 3\nAccuracy: 100.00%\n\n"
    assert output.err == f"note: {said}"


def test_missing_and_repeated_answers_are_noted(tmp_path: Path, capsys: Capture) -> None:
    paths = _files(tmp_path, [("i1", PLAIN), ("i1", PLAIN)])
    eval_single(*paths, score_file=str(tmp_path / "s.json"))
    error = capsys.readouterr().err
    assert "2 of 3 questions have no answer and are left out: i0: what is it?, i2: what is it?" in error
    assert "1 answers repeat a question" in error
    score = read_score_file(str(tmp_path / "s.json"))
    assert (score.benchmark, score.experiment, score.score) == ("TextVQA", "model", 100)
    assert (score.expected, score.answered) == (3, 1)
    assert score.details["note"] == "OCR tokens in the prompt: no"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], r"model\.jsonl holds no answers"), ([("i7", PLAIN)], "no question 'what is it\\?' about image 'i7'")],
)
def test_answers_that_do_not_fit_are_refused(prompts: list[tuple[str, str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        eval_single(*_files(tmp_path, prompts))


def test_an_annotation_file_of_another_kind(tmp_path: Path) -> None:
    _, answers = _files(tmp_path, [("i0", PLAIN)])
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(RequestError, match=r"other\.json: no list 'data'"):
        eval_single(str(tmp_path / "other.json"), answers)


def test_something_must_be_named(tmp_path: Path) -> None:
    annotations, _ = _files(tmp_path, [])
    with pytest.raises(RequestError, match="give --result-file or --result-dir"):
        main(build_parser().parse_args(["--annotation-file", annotations]))
