"""POPE: replies, labels, and missing answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llava.eval.scoring.pope import BENCHMARK, count_outcomes, eval_pope, says_yes
from llava.eval.scoring.score_file import ScoreFile
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_lines, score


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("NO", True),  # only No, no and not count
        ("No.", False),
        ("No, there is none", False),
        ("There is not a cat. Yes", False),
        ("Yes. No", True),  # only the text before the first period counts
        ("nothing", True),
        ("Yes,no", True),  # commas are removed before the text is split
        ("not\nsure", True),  # only spaces separate words
        ("", True),
    ],
)
def test_meaning_of_a_reply(reply: str, yes: bool) -> None:
    assert says_yes(reply) is yes


@pytest.mark.parametrize(
    ("pairs", "rates"),
    [
        ([(True, True), (True, False), (False, False), (False, True)], (0.5, 0.5, 0.5, 0.5, 0.5)),
        ([(False, True), (False, False)], (0.5, 0.0, 0.0, 0.0, 0.0)),  # no yes said: upstream divides by zero
        ([(True, False)], (0.0, 0.0, 0.0, 0.0, 1.0)),  # no yes right
        ([(False, False)], (1.0, 0.0, 0.0, 0.0, 0.0)),
        ([], (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_rates(pairs: Sequence[tuple[bool, bool]], rates: tuple[float, ...]) -> None:
    counts = count_outcomes(pairs)
    assert (counts.accuracy, counts.precision, counts.recall, counts.f1, counts.yes_ratio) == rates


LABELS = {"popular": ["yes", "no", "yes", "no"], "random": ["no", "no", "yes", "yes"]}


class Benchmark:
    """Two categories of four questions; the question file numbers them 0-7, the annotations 1-4 in each category."""

    def __init__(self, folder: Path, labels: Mapping[str, Sequence[str]] = LABELS) -> None:
        self.folder = folder
        (folder / "coco").mkdir()
        questions = []
        for category, values in labels.items():
            rows = [{"question_id": number, "label": label} for number, label in enumerate(values, start=1)]
            self.write(f"coco/coco_pope_{category}.json", rows)
            questions += [{"question_id": len(questions) + number, "category": category} for number in range(4)]
        self.write("questions.jsonl", questions)

    def write(self, name: str, rows: Sequence[Mapping]) -> None:
        (self.folder / name).write_text(as_lines(rows))

    def score(self, answers: Sequence[tuple[int, str]]) -> ScoreFile:
        paths = {"--annotation-dir": self.folder / "coco", "--question-file": self.folder / "questions.jsonl"}
        lines = as_lines({"question_id": number, "text": text} for number, text in answers)
        return score(BENCHMARK, self.folder, paths | {RESULTS: lines})


@pytest.fixture
def benchmark_(tmp_path: Path) -> Benchmark:
    return Benchmark(tmp_path)


RIGHT = list(enumerate(["Yes", "No", "Yes", "No", "No", "No", "Yes", "Yes"]))


def test_answers_in_any_order_score_the_same(benchmark_: Benchmark, capsys: Capture) -> None:
    """Upstream pairs answers and labels by order."""
    benchmark_.score(RIGHT)
    straight = capsys.readouterr()
    benchmark_.score(RIGHT[::-1])
    assert capsys.readouterr() == straight
    assert straight.out.count("1.000, 1.000, 1.000, 1.000, 0.500") == 2
    assert "mean F1 of popular, random: 100.00" in straight.err


def test_a_missing_answer_shifts_nothing_and_is_noted(benchmark_: Benchmark, capsys: Capture) -> None:
    """Upstream compares every later answer with another question's label."""
    benchmark_.score(RIGHT[1:])
    output = capsys.readouterr()
    assert "Category: popular, # samples: 3\n" in output.out
    assert output.out.count("Accuracy: 1.0\n") == 2
    assert "1 of 8 questions have no answer and are left out: 0" in output.err


def test_of_two_answers_the_last_counts(benchmark_: Benchmark, capsys: Capture) -> None:
    benchmark_.score([(0, "No"), *RIGHT])
    output = capsys.readouterr()
    assert output.out.count("Accuracy: 1.0\n") == 2
    assert "1 questions have several answers" in output.err


def test_labels_with_the_ids_of_the_questions_are_matched_by_them(benchmark_: Benchmark, capsys: Capture) -> None:
    rows = [{"question_id": number, "label": label} for number, label in zip(range(4), LABELS["popular"])]
    benchmark_.write("coco/coco_pope_popular.json", rows[::-1])
    benchmark_.score(RIGHT)
    assert capsys.readouterr().out.count("Accuracy: 1.0\n") == 2


def test_score_file(benchmark_: Benchmark) -> None:
    answers = [*RIGHT[:2], (2, "No"), *RIGHT[3:-1]]  # one object missed; one question open
    result = benchmark_.score(answers)
    assert (result.benchmark, result.experiment, result.expected, result.answered) == ("POPE", "model", 8, 7)
    assert result.score == pytest.approx((100 * 2 / 3 + 100) / 2)
    assert result.details["popular"]["recall"] == 0.5
    assert len({item["unit"] for item in result.items}) == 7


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"popular": ["yes", "no", "maybe", "no"]}, r"coco_pope_popular\.json, line 3: the label is 'maybe'"),
        ({"popular": ["yes", "no", "no"]}, r"has 3 labels, the question file 4 questions"),
        ({}, "holds no coco_pope_<category>.json file"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(labels: dict, message: str, tmp_path: Path) -> None:
    benchmark_ = Benchmark(tmp_path, labels)
    if not labels:
        benchmark_.write("questions.jsonl", [{"question_id": 0, "category": "popular"}])
    with pytest.raises(RequestError, match=message):
        benchmark_.score(RIGHT[:4])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "it holds no answers"),
        ([(90, "Yes")], "answers none of the 8 questions"),
        (RIGHT[:4], "answers no question of the category 'random'"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    answers: list[tuple[int, str]], message: str, benchmark_: Benchmark
) -> None:
    with pytest.raises(RequestError, match=message):
        benchmark_.score(answers)


def test_questions_must_have_ids_of_their_own(benchmark_: Benchmark) -> None:
    benchmark_.write("questions.jsonl", [{"question_id": n % 4, "category": "popular"} for n in range(8)])
    with pytest.raises(RequestError, match="occurs twice"):
        benchmark_.score(RIGHT)


def test_eval_pope_from_another_program(benchmark_: Benchmark, capsys: Capture) -> None:
    label_file = str(benchmark_.folder / "coco/coco_pope_popular.json")
    by_order = [{"question_id": 7, "text": "Yes"}, {"question_id": 9, "text": "No"}, {"text": "Yes"}, {"text": "No"}]
    assert eval_pope(by_order, label_file).accuracy == 1
    by_id = [{"question_id": number, "text": text} for number, text in ((2, "No"), (1, "Yes"), (4, "No"), (3, "Yes"))]
    assert eval_pope(by_id, label_file).accuracy == 1
    assert capsys.readouterr().out.startswith("TP\tFP\tTN\tFN\t\n2\t0\t2\t0\n")
    with pytest.raises(RequestError, match="4 labels, the question file 3"):
        eval_pope(by_order[:3], label_file)
