"""MMBench: the letter in a reply, vanilla and circular accuracy from both kinds of passes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from llava.eval import model_vqa_mmbench
from llava.eval.scoring.mmbench import BENCHMARK, read_rows
from llava.eval.scoring.mmbench_table import read_table, rows_of
from llava.eval.scoring.option_letters import extract_letter
from llava.program import RequestError
from tests.support.scoring import RESULTS, Capture, as_lines, score

OPTIONS = {"A": "a red cat", "B": "dog", "C": "hot dog", "D": "None of these"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("(B) dog", "B"),
        ("B. a red cat", "B"),  # the letter takes precedence over the text
        ("C: hot dog", "C"),
        ("A. It is the one", "A"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("答案是B。", "B"),
        ("A cat", "A"),  # three words or fewer
        ("A cat is on the mat", None),  # the article
        ("A or B", None),
        ("b", None),
        ("E", None),  # not offered
        ("It is A RED CAT indeed", "A"),
        ("I see a hot dog", None),  # dog and hot dog both occur
        ("none of these", "D"),
        ("ABC", None),
        ("", None),
    ],
)
def test_letter_of_a_reply(reply: str, letter: str | None) -> None:
    assert extract_letter(reply, OPTIONS) == letter


HEADER = ["index", "question", "A", "B", "C", "answer", "category", "image", "l2-category"]
# Question 1 with three options in three passes, question 2 with two options in two.
CIRCULAR = [
    ["1", "q", "x", "y", "z", "A", "cat1", "...", "p"],
    ["1000001", "q", "y", "z", "x", "C", "cat1", "...", "p"],
    ["2000001", "q", "z", "x", "y", "B", "cat1", "...", "p"],
    ["2", "q", "u", "v", "", "B", "cat2", "...", "p"],
    ["1000002", "q", "v", "u", " NaN", "A", "cat2", "...", "p"],
]
PLAIN = [CIRCULAR[0], CIRCULAR[3]]


def _files(rows: list[list[str]], answers: Mapping[tuple[int, int], str]) -> dict[str, str]:
    lines = [{"question_id": index, "round_id": turn, "text": text} for (index, turn), text in answers.items()]
    table = "\n".join("\t".join(row) for row in [HEADER, *rows]) + "\n"
    return {"--annotation-file": table, RESULTS: as_lines(lines)}


RIGHT = {(1, 0): "A", (1000001, 0): "C", (2000001, 0): "B", (2, 0): "B", (1000002, 0): "A"}
RIGHT_ROUNDS = {(1, 0): "A", (1, 1): "C", (1, 2): "B", (2, 0): "B", (2, 1): "A"}


@pytest.mark.parametrize(
    ("rows", "answers", "vanilla", "circular"),
    [
        (CIRCULAR, RIGHT, "100.00", "100.00"),
        (CIRCULAR, RIGHT | {(2000001, 0): "A"}, "100.00", "50.00"),
        (CIRCULAR, RIGHT | {(1, 0): "B"}, "50.00", "50.00"),
        (CIRCULAR, dict.fromkeys(RIGHT, "A"), "50.00", "0.00"),  # always the same letter
        (PLAIN, RIGHT_ROUNDS, "100.00", "100.00"),
        (PLAIN, RIGHT_ROUNDS | {(1, 1): "z"}, "100.00", "50.00"),  # by its text: z is C in the table
        (PLAIN, RIGHT_ROUNDS | {(1, 1): "x"}, "100.00", "100.00"),
        (PLAIN, dict.fromkeys(RIGHT_ROUNDS, "A"), "50.00", "0.00"),
    ],
)
def test_accuracy(rows: list, answers: dict, vanilla: str, circular: str, tmp_path: Path, capsys: Capture) -> None:
    score(BENCHMARK, tmp_path, _files(rows, dict(reversed(answers.items()))))
    output = capsys.readouterr()
    assert f"Vanilla accuracy: {vanilla}% (2 questions)\n" in output.out
    assert f"Circular accuracy: {circular}% (2 questions)\n" in output.out
    assert output.err == ""


def test_tables_and_score_file(tmp_path: Path, capsys: Capture) -> None:
    answers = {key: text for key, text in RIGHT.items() if key != (1000001, 0)} | {(1000002, 0): "unsure"}
    result = score(BENCHMARK, tmp_path, _files(CIRCULAR, answers), "--benchmark", "CCBench")
    output = capsys.readouterr()
    assert "Circular accuracy / category:\n  cat1: 0.00%\n  cat2: 0.00%\n" in output.out
    assert "Vanilla accuracy / l2-category:\n  p: 100.00%\n" in output.out
    assert "1 of 5 questions have no answer and count as wrong" in output.err
    assert "1 replies name no option and count as wrong: 1000002 round 0" in output.err
    assert (result.benchmark, result.score, result.expected, result.answered) == ("CCBench", 0, 5, 4)
    assert result.details["protocol"] == "circular"
    assert result.details["vanilla"] == 100


def test_without_passes_there_is_no_circular_accuracy(tmp_path: Path, capsys: Capture) -> None:
    result = score(BENCHMARK, tmp_path, _files(PLAIN, {(1, 0): "A", (2, 0): "A"}))
    output = capsys.readouterr()
    assert "Vanilla accuracy: 50.00% (2 questions)\n" in output.out
    assert "Circular" not in output.out
    assert "no circular accuracy" in output.err
    assert result.details["protocol"] == "vanilla"


def test_passes_that_are_missing_in_the_table_are_noted(tmp_path: Path, capsys: Capture) -> None:
    score(BENCHMARK, tmp_path, _files(CIRCULAR[1:] + CIRCULAR[:1], RIGHT))
    assert capsys.readouterr().err == ""
    answers = {key: RIGHT[key] for key in RIGHT if key != (1000001, 0)}
    score(BENCHMARK, tmp_path, _files([CIRCULAR[0], *CIRCULAR[2:]], answers))
    assert "1 questions have fewer passes than options: 1" in capsys.readouterr().err


def test_generator_and_scorer_know_the_same_letters(tmp_path: Path, capsys: Capture) -> None:
    """As many as the table has option columns: upstream shows A to D only."""
    header = "index\tquestion\tA\tB\tC\tD\tE\tanswer\timage"
    table = tmp_path / "t.tsv"
    table.write_text(f"{header}\n1\tq\tu\tv\tw\tx\ty\tE\tAAAA\n2\tq\tu\tv\tw\t\ty\tC\tAAAA\n")
    queries = [
        query
        for row in rows_of(read_table(str(table), model_vqa_mmbench.COLUMNS))
        for query in model_vqa_mmbench.mmbench_queries(row, all_rounds=True, suffix="")
    ]
    assert ["".join(query.fields["option_char"]) for query in queries[::5]] == ["ABCDE", "ABC"]
    right = {1: "y", 2: "w"}
    shown = [query.fields["options"].index(right[query.fields["question_id"]]) for query in queries]
    answers = [query.fields | {"text": "ABCDE"[place]} for query, place in zip(queries, shown)]
    result = score(BENCHMARK, tmp_path, {"--annotation-file": table, RESULTS: as_lines(answers)})
    assert (result.score, result.expected, capsys.readouterr().err) == (100, 8, "")


def test_options_end_at_the_first_missing_one(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(_files(CIRCULAR, {})["--annotation-file"])
    assert [len(row.options) for row in read_rows(str(tmp_path / "t.tsv"))] == [3, 3, 3, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("answer", "reply"), "no column 'answer'"),
        (lambda text: text.replace("index", "number"), "no column index"),
        (lambda text: text.replace("\n1\t", "\n\u00b2\t"), "the index '\u00b2' is not a whole number"),
        (lambda text: text.replace("\tA\tcat1", "\tD\tcat1"), "index '1': answer 'D' is not one of 3 options"),
        (lambda text: text.replace("\n1\t", "\n3000001\t").replace("\n2\t", "\n3000002\t"), "no vanilla question"),
    ],
)
def test_unusable_tables(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    files = _files(PLAIN, RIGHT)
    with pytest.raises(RequestError, match=message):
        score(BENCHMARK, tmp_path, files | {"--annotation-file": change(files["--annotation-file"])})


def test_answers_to_another_table(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="answers none of the 2 questions"):
        score(BENCHMARK, tmp_path, _files(PLAIN, {(77, 0): "A"}))
