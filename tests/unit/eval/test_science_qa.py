"""ScienceQA: the letter in a reply, options, missing answers, and the two scorers with GPT-4."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from llava.eval import eval_science_qa_gpt4, eval_science_qa_gpt4_requery
from llava.eval.scoring.science_qa import BENCHMARK, choice_index, option_letters, parse_choice
from llava.eval.scoring.score_file import ScoreFile
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_answers, score

LETTERS = list("ABCDE")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b", "FAILED"),
        ("F", "FAILED"),  # no option
        ("A.", "FAILED"),  # too short for a letter, a period and a space
        ("A. ", "A"),
        ("A. the cat", "A"),
        ("Z. the cat", "Z"),  # a letter, offered or not
        ("a. the cat", "FAILED"),
        ("A) the cat", "FAILED"),
        ("The answer is C.", "C"),
        ("So: The answer is C, I think", "C"),  # the last dot matches any character
        ("The answer is C", "FAILED"),  # but one must exist
        ("The answer is C. The answer is C.", "FAILED"),  # exactly one
        ("", "FAILED"),
    ],
)
def test_letter_of_a_reply(reply: str, letter: str) -> None:
    assert parse_choice(reply, LETTERS) == letter


@pytest.mark.parametrize(("letter", "choices", "index"), [("A", 2, 0), ("C", 2, -1), ("FAILED", 5, -1), ("E", 5, 4)])
def test_index_of_a_letter(letter: str, choices: int, index: int) -> None:
    assert choice_index(letter, choices, LETTERS) == index


@pytest.mark.parametrize("words", [["A", "B", "C"], ["ABC"], ["A,B,C"], ["A,", "B,", "C"]])
def test_options(words: list[str]) -> None:
    """Upstream splits the text of the command line into characters, commas included."""
    assert option_letters(words) == ["A", "B", "C"]


@pytest.mark.parametrize("words", [["A", "A"], ["a"], ["1"], [","]])
def test_unusable_options(words: list[str]) -> None:
    with pytest.raises(RequestError, match="different capital letters"):
        option_letters(words)


def _answers(texts: Mapping[str, str]) -> str:
    return as_answers(texts, prompt="<image>\nq")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, object], str]:
    def write(name: str, content: object) -> str:
        (tmp_path / name).write_text(_answers(content) if name.endswith(".jsonl") else json.dumps(content))
        return str(tmp_path / name)

    write("problems.json", {str(n): {"choices": ["x", "y", "z"], "answer": n % 3} for n in range(1, 7)})
    write("pid_splits.json", {"test": ["1", "2", "3", "4"], "val": ["5", "6"], "empty": []})
    return write


def _science_qa(folder: Path, texts: Mapping[str, str], *flags: str) -> ScoreFile:
    outputs = {"--output-file": folder / "out.json", "--output-result": folder / "result.json"}
    return score(BENCHMARK, folder, {"--base-dir": folder, RESULTS: _answers(texts), **outputs}, *flags)


@pytest.mark.usefixtures("write")
def test_missing_answers_are_wrong_and_noted(tmp_path: Path, capsys: Capture) -> None:
    result = _science_qa(tmp_path, {"2": "C", "1": "B", "9": "A"})
    output = capsys.readouterr()
    assert output.out == "Total: 4, Correct: 2, Accuracy: 50.00%, IMG-Accuracy: 100.00%\n"
    assert "2 of 4 questions have no answer and count as wrong: 3, 4" in output.err
    assert "1 answers belong to no question" in output.err
    assert json.loads((tmp_path / "result.json").read_text())["results"] == {"1": 1, "2": 2, "3": -1, "4": -1}
    assert (result.benchmark, result.score, result.expected, result.answered) == ("SQA", 100, 4, 2)
    assert result.details["accuracy"] == 50


@pytest.mark.usefixtures("write")
def test_options_of_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    _science_qa(tmp_path, {"1": "Y", "2": "Z", "3": "X", "4": "B"}, "--options", "X", "Y", "Z")
    assert "Total: 4, Correct: 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--split", "train"], r"pid_splits\.json has no split 'train'; it has test, val, empty"),
        (["--split", "empty"], "the split 'empty' is empty"),
        (["--split", "val"], "answers none of the 2 questions"),
        (["--options", "A"], "answer 1 has no letter"),
    ],
)
@pytest.mark.usefixtures("write")
def test_unusable_input(tmp_path: Path, extra: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _science_qa(tmp_path, {"1": "A"}, *extra)


def _said(letters: Mapping[str, str]) -> dict[str, str]:
    return {key: f"The answer is {letter}." if len(letter) == 1 else letter for key, letter in letters.items()}


OURS = _said({"1": "B", "2": "A", "3": "B", "4": "unsure"})  # only 1 is right
GPT4 = _said({"1": "who knows", "2": "C", "3": "C"})  # right: 2; no answer to 1


def _argv(folder: Path, write: Callable[..., str]) -> list[str]:
    gpt4 = write("gpt4.json", {"outputs": GPT4})
    return ["--base-dir", str(folder), "--gpt4-result", gpt4, "--our-result", write("ours.jsonl", OURS)]


def _run(module: ModuleType, argv: list[str]) -> None:
    module.main(module.build_parser().parse_args(argv))


def test_gpt4_with_our_answers(write: Callable[..., str], tmp_path: Path, capsys: Capture) -> None:
    _run(eval_science_qa_gpt4, _argv(tmp_path, write))
    output = capsys.readouterr()
    assert output.out == (
        "Total: 3, Correct: 2, Accuracy: 66.67%\n"
        "Total: 3, Correct (upper bound): 2, Accuracy: 66.67%\n"
        "Total: 3, GPT-4 without answer: 1, Percentage: 33.33%\n"
    )
    assert "3 of 4 problems of the split are answered by both" in output.err


def test_an_unparsable_answer_is_wrong_every_time(write: Callable[..., str], tmp_path: Path, capsys: Capture) -> None:
    """Upstream draws a random choice, so that its figures change from run to run."""
    argv = ["--base-dir", str(tmp_path), "--gpt4-result", write("g.json", {"outputs": {"1": "?", "2": "?"}})]
    argv += ["--our-result", write("o.jsonl", {"1": "?", "2": "?"})]
    for _ in range(20):
        _run(eval_science_qa_gpt4, argv)
    assert capsys.readouterr().out.count("Total: 2, Correct: 0, Accuracy: 0.00%\n") == 20


def test_requery(write: Callable[..., str], tmp_path: Path, capsys: Capture) -> None:
    requery = write("requery.jsonl", _said({"1": "?", "2": "B", "3": "A"}))  # 1 falls back on ours; right: 1, 3
    argv = [*_argv(tmp_path, write), "--requery-result", requery, "--output-result", str(tmp_path / "r.json")]
    _run(eval_science_qa_gpt4_requery, argv)
    assert capsys.readouterr().out == (
        "Total: 3, Correct (ours): 1, Accuracy: 33.33%\n"
        "Total: 3, Correct (GPT-4): 1, Accuracy: 33.33%\n"
        "Total: 3, GPT-4 without answer: 1, Percentage: 33.33%\n"
        "Total: 3, Correct (GPT-4, ours where it gives none): 2, Accuracy: 66.67%\n"
        "Total: 3, Correct (requery): 2, Accuracy: 66.67%\n"
        "Total: 3, Correct (upper bound): 3, Accuracy: 100.00%\n"
    )
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "acc": pytest.approx(200 / 3),
        "correct": 2,
        "count": 3,
        "results": {"1": 1, "2": 1, "3": 0},
        "outputs": {"1": OURS["1"], **_said({"2": "B", "3": "A"})},
    }


def test_a_result_file_of_another_kind(write: Callable[..., str], tmp_path: Path) -> None:
    argv = ["--base-dir", str(tmp_path), "--gpt4-result", write("g.json", []), "--our-result", write("o.jsonl", OURS)]
    with pytest.raises(RequestError, match=r"g\.json: not a JSON object"):
        _run(eval_science_qa_gpt4, argv)
