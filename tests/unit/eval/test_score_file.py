"""Score files and the JSON files beneath all scorers."""

from pathlib import Path

import pytest

from llava.eval.scoring.json_files import read_json, read_json_lines, read_readable_lines, write_json, write_json_lines
from llava.eval.scoring.score_file import Score, item, read_score_file, recorded_run, write_score_file
from llava.eval.scoring.scorer import experiment_name
from llava.program import RequestError


def test_lines_are_read_and_faults_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y"}\n\n{"a": 2}\n', encoding="utf-8")
    assert read_json_lines(str(path), ["a"]) == [{"a": "x\u2028y"}, {"a": 2}]
    with pytest.raises(RequestError, match=r"a\.jsonl, line 1: there is no 'b'"):
        read_json_lines(str(path), ["b"])
    path.write_text('{"a": 1}\n[1]\n{broken\n')
    with pytest.raises(RequestError, match="line 2: not a JSON object"):
        read_json_lines(str(path))
    assert read_readable_lines(str(path)) == ([{"a": 1}], 2)


def test_empty_lines_are_among_the_unreadable(tmp_path: Path) -> None:
    """The converters count them; the newline at the end of the file starts no line."""
    path = tmp_path / "a.jsonl"
    for end, failures in (("", 1), ("\n", 1), ("\n\n", 2)):
        path.write_text('{"a": 1}\n\n{"a": 2}' + end)
        assert read_readable_lines(str(path)) == ([{"a": 1}, {"a": 2}], failures)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 10_000 + "}"])
def test_json_beyond_what_can_be_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text + "\n")
    for read in (read_json, read_json_lines):
        with pytest.raises(RequestError, match=r"a\.jsonl.*: not JSON that can be read"):
            read(str(path))
    assert read_readable_lines(str(path)) == ([], 1)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    """It can be neither printed nor written; complete pairs are kept."""
    path = tmp_path / "a.json"
    path.write_text(r'{"a": "x\ud83d", "b": "\ud83d\ude00"}')
    assert read_json(str(path)) == {"a": "x?", "b": "\N{GRINNING FACE}"}


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a":\n 1,,}')
    with pytest.raises(RequestError, match=r"a\.json, line 2: not JSON"):
        read_json(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="UTF-8"):
        read_json(str(path))


def test_files_are_written_in_new_folders(tmp_path: Path) -> None:
    write_json(str(tmp_path / "x/y.json"), {"a": "é"}, indent=2)
    assert (tmp_path / "x/y.json").read_text() == '{\n  "a": "\\u00e9"\n}'
    write_json_lines(str(tmp_path / "z/y.jsonl"), [{"a": 1}, {"a": 2}])
    assert (tmp_path / "z/y.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'


def test_recorded_run() -> None:
    answers = [
        {"metadata": {"seconds": 0.1, "device": "cpu", "num_beams": 1}},
        {"metadata": {"seconds": 0.3, "device": "cuda", "num_beams": 1}},
        {"metadata": {}},
        {},
    ]
    assert recorded_run(answers) == {
        "seconds": pytest.approx(0.2),
        "device": ["cpu", "cuda"],
        "num_beams": 1,
        "answers": 2,
    }
    assert recorded_run([{"metadata": {}}, {}]) == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("answers/llava-v1.5-13b.jsonl", "llava-v1.5-13b"),
        ("answers/split/llava-v1.5-7b/merge.jsonl", "llava-v1.5-7b"),
    ],
)
def test_experiment_name(path: str, name: str) -> None:
    assert experiment_name(path) == name


def test_score_files_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "scores/a.json"
    items = [item(1, 1), item(2, 0)]
    write_score_file(str(path), Score("GQA", "a.jsonl", "mean", items, {"a": 1}, expected=3, answered=2), "x")
    score = read_score_file(str(path))
    assert (score.score, score.items, score.expected, score.answered, score.run) == (50, items, 3, 2, {})
    (tmp_path / "b.json").write_text('{"benchmark": "GQA"}')
    with pytest.raises(RequestError, match="no 'experiment'"):
        read_score_file(str(tmp_path / "b.json"))
