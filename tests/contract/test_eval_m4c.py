"""Normal form of answers and the metrics on it, against upstream's recordings (vectors/llava/eval/m4c.json)."""

import json
import sys
from types import SimpleNamespace

import pytest

from llava.eval.eval_textvqa import prompt_processor
from llava.eval.m4c_evaluator import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextCapsBleu4Evaluator,
    TextVQAAccuracyEvaluator,
)
from llava.eval.scoring.answer_normalisation import CONTRACTIONS
from llava.eval.scoring.short_answers import answer_scores
from tests.conftest import VECTORS

RECORDED = json.loads((VECTORS / "llava/eval/m4c.json").read_text())
ERRORS = {"AssertionError": AssertionError, "AttributeError": AttributeError, "ModuleNotFoundError": ImportError}

WRITTEN = [
    ("The cat's", "cat 's"),
    ("1,000", "1000"),
    ("U.S.A.", "usa"),
    ("3.5", "3.5"),
    ("red/blue", "red blue"),
    ("red / blue", "red blue"),
    ("a-b", "b"),
    ("N/A", "n"),
    ("Ten", "10"),
    ("none", "0"),
    ("10:30", "10:30"),
    ("$5.00", "$5.00"),
    ("hello.world", "helloworld"),
    ("dont", "don't"),
    ("oclock", "o'clock"),
    ("no. 5", "no 5"),
    ("an apple a day", "apple day"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("somebody'd", "somebodyd"),
    ("yall'd've", "y'all'd've"),
    ("'ow'sat", "'ow 'sat"),  # its 's is set apart before the table is looked at
    ("x- y-z", "x yz"),  # next to a space once, removed everywhere
    ("x -y-z", "x yz"),
    ("x-y- ", "x y"),  # spaces at the ends do not count
    ("x\n-y-z", "x yz"),  # newlines do
    ("x-1,000", "x 1000"),  # commas are gone before they could matter
    ("x" + "." * 40, "x"),  # upstream leaves the periods after the 32nd
]


@pytest.mark.parametrize(("text", "normal"), [*RECORDED["answer_processor"], *WRITTEN])
def test_normal_form(text: str, normal: str) -> None:
    processor = EvalAIAnswerProcessor()
    assert processor(text) == normal
    assert processor(text) == normal  # upstream's tables grow while they are used


def test_contractions_are_the_120_of_the_official_table() -> None:
    assert len(CONTRACTIONS) == 120


@pytest.mark.parametrize(("answers", "scores"), RECORDED["unique_scores"])
def test_scores_of_all_answers(answers: list[str], scores: dict[str, float]) -> None:
    assert answer_scores(answers) == pytest.approx(scores)


@pytest.mark.parametrize(("prediction", "answers", "score"), RECORDED["textvqa_accuracy"])
def test_textvqa_accuracy(prediction: str, answers: list[str], score: float) -> None:
    entry = {"pred_answer": prediction, "gt_answers": answers}
    assert TextVQAAccuracyEvaluator().eval_pred_list([entry]) == pytest.approx(score)


@pytest.mark.parametrize(("prediction", "answers", "score"), RECORDED["stvqa_accuracy"])
def test_stvqa_accuracy(prediction: str, answers: list[str], score: float) -> None:
    assert STVQAAccuracyEvaluator().eval_pred_list([{"pred_answer": prediction, "gt_answers": answers}]) == score


def test_other_than_ten_answers_are_refused() -> None:
    with pytest.raises(ERRORS[RECORDED["nine_answers_error"]["type"]], match="9 human answers"):
        TextVQAAccuracyEvaluator().eval_pred_list([{"pred_answer": "x", "gt_answers": ["x"] * 9}])


@pytest.mark.parametrize(("prompt", "question", "error"), RECORDED["prompt_processor"])
def test_question_of_a_prompt(prompt: str, question: str | None, error: dict | None) -> None:
    if error is None:
        assert prompt_processor(prompt) == question
    else:
        with pytest.raises(ERRORS[error["type"]]):
            prompt_processor(prompt)


def test_anls_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = RECORDED["stvqa_anls_import_error"]
    monkeypatch.setitem(sys.modules, "editdistance", None)
    with pytest.raises(ERRORS[recorded["type"]], match=r"editdistance.*pip install editdistance"):
        STVQAANLSEvaluator()


def _edit_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return _edit_distance(a[1:], b[1:])
    return 1 + min(_edit_distance(a[1:], b), _edit_distance(a, b[1:]), _edit_distance(a[1:], b[1:]))


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Stop ", ["go", "stop"], 1.0),
        ("stop", ["go", " STOP"], 1.0),
        ("stap", ["stop"], 0.75),
        ("ab", ["ax"], 0.5),
        ("abc", ["axy"], 0.0),  # 1/3 is below one half
        ("", [""], 1.0),
    ],
)
def test_anls(prediction: str, answers: list[str], score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "editdistance", SimpleNamespace(eval=_edit_distance))
    entry = {"pred_answer": prediction, "gt_answers": answers}
    assert STVQAANLSEvaluator().eval_pred_list([entry]) == pytest.approx(score)


def test_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the package, whose own arithmetic is not ours to test."""

    class Tokenizer:
        def tokenize(self, captions: dict) -> dict:
            return {key: [entry["caption"].lower() for entry in entries] for key, entries in captions.items()}

    class Bleu:
        def __init__(self, n: int) -> None:
            assert n == 4

        def compute_score(self, references: dict, captions: dict) -> tuple[list[float], list]:
            assert references == {0: ["a cat", "the cat"]}
            assert captions == {0: ["cat"]}
            return [0.4, 0.3, 0.2, 0.1], []

    for name, module in {
        "pycocoevalcap": SimpleNamespace(__path__=[]),
        "pycocoevalcap.tokenizer": SimpleNamespace(__path__=[]),
        "pycocoevalcap.bleu": SimpleNamespace(__path__=[]),
        "pycocoevalcap.tokenizer.ptbtokenizer": SimpleNamespace(PTBTokenizer=Tokenizer),
        "pycocoevalcap.bleu.bleu": SimpleNamespace(Bleu=Bleu),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    entry = {"pred_answer": "Cat", "gt_answers": ["A cat", "The cat"]}
    assert TextCapsBleu4Evaluator().eval_pred_list([entry]) == 0.1
