"""Answers files: lines, locks, and resuming."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava.eval.answering.answers_file import AnswersFile, answer_record, short_uuid
from llava.program import RequestError
from tests.support.scoring import as_lines

ASKED = [{"question_id": id_, "prompt": prompt} for id_, prompt in (("a", "1"), ("a", "2"), ("b", "1"), ("b", "1"))]


def _line(index: int, model: str = "m") -> dict[str, Any]:
    return answer_record(ASKED[index]["question_id"], ASKED[index]["prompt"], f"reply {index}", model, {})


def _replies(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_lines_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the current folder and in one that does not exist, where upstream fails."""
    monkeypatch.chdir(tmp_path)
    with AnswersFile("answer.jsonl", ASKED).open() as write:
        write(0, _line(0))
        record = json.loads(Path("answer.jsonl").read_text())
    assert len(record.pop("answer_id")) == 22
    assert record == {"question_id": "a", "prompt": "1", "text": "reply 0", "model_id": "m", "metadata": {}}
    with AnswersFile("new/folder/a.jsonl", ASKED).open():
        pass
    assert Path("new/folder/a.jsonl").read_text() == ""
    assert len({short_uuid() for _ in range(100)}) == 100


def test_overwriting_answers_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    for count in (0, 1):
        with AnswersFile(str(path), ASKED).open() as write:
            write(1, _line(1))
        assert _replies(path) == ["reply 1"]
        assert len(caplog.records) == count


@pytest.mark.parametrize("cut", ["", '{"question_id": "b", "pro'])
def test_resuming_fills_the_gaps(tmp_path: Path, cut: str, caplog: pytest.LogCaptureFixture) -> None:
    """Questions may share an id, or even id and prompt; the partial last line of a killed run is dropped."""
    path = tmp_path / "a.jsonl"
    path.write_text(as_lines(_line(index) for index in (1, 2)) + cut)
    file = AnswersFile(str(path), ASKED, resume=True)
    assert file.missing == [0, 3]
    file.check_run("m", {})
    with file.open() as write:
        assert _replies(path) == ["reply 1", "reply 2"]
        write(3, _line(3))
        write(0, _line(0))
    assert _replies(path) == [f"reply {index}" for index in range(4)]
    assert not caplog.records
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (as_lines([{"question_id": "c", "prompt": "1"}]), "line 1: not an answer to one of these questions"),
        (as_lines([_line(2)] * 3), "line 3: not an answer"),
        ("what\n", "line 1: not JSON"),
        ("\udcff\n", "line 1: not JSON"),  # a byte that is not UTF-8
        ("[]\n", "line 1: not a JSON object"),
    ],
)
def test_resuming_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(RequestError, match=message):
        AnswersFile(str(path), ASKED, resume=True)
    assert path.read_text(errors="surrogateescape") == content


def test_resuming_with_another_model_or_settings_is_refused(tmp_path: Path) -> None:
    """Settings are compared if the answers record them; device and batch size may differ."""
    path = tmp_path / "a.jsonl"
    first = {"num_visual_tokens": 145, "temperature": 0.0, "batch_size": 1, "device": "cpu", "seconds": 0.1}
    path.write_text(as_lines([_line(0), _line(1) | {"metadata": first}]))
    file = AnswersFile(str(path), ASKED, resume=True)
    file.check_run("m", {"num_visual_tokens": 145, "temperature": 0, "batch_size": 16, "device": "cuda"})
    with pytest.raises(RequestError, match="made with num_visual_tokens 145 instead of 65; give the first run's flags"):
        file.check_run("m", first | {"num_visual_tokens": 65})
    with pytest.raises(RequestError, match="answers of m, not of llava-13b"):
        file.check_run("llava-13b", {})


@pytest.mark.parametrize("path", ["", ".", "/dev/null"])
def test_the_path_must_be_that_of_a_file(path: str) -> None:
    with pytest.raises(RequestError, match=r"--answers-file is .* which is no file"):
        AnswersFile(path, ASKED)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert AnswersFile("~/a.jsonl", ASKED).path == f"{tmp_path}/a.jsonl"


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_cannot_write_one_file(tmp_path: Path, resume: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    with AnswersFile(str(path), ASKED).open() as write:
        write(0, _line(0))
        with (
            pytest.raises(RequestError, match=r"a\.jsonl is being written by another process"),
            AnswersFile(str(path), ASKED, resume).open(),
        ):
            pass
        write(1, _line(1))
    assert _replies(path) == ["reply 0", "reply 1"]
    assert not caplog.records
    with AnswersFile(str(path), ASKED, resume=True).open() as write:
        write(2, _line(2))
    assert _replies(path) == ["reply 0", "reply 1", "reply 2"]


def test_a_full_disk_leaves_no_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_some = os.write
    with (
        pytest.raises(OSError, match="is the disk full"),
        AnswersFile(str(tmp_path / "a.jsonl"), ASKED).open() as write,
    ):
        write(0, _line(0))
        monkeypatch.setattr(os, "write", lambda descriptor, data: write_some(descriptor, data[:20]))
        write(1, _line(1))
    assert _replies(tmp_path / "a.jsonl") == ["reply 0"]
