"""The data of the web page that compares models."""

import json
from pathlib import Path

import pytest

from llava.eval import generate_webpage_data_from_table
from llava.program import RequestError
from tests.support.scoring import as_lines


def test_webpage_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = generate_webpage_data_from_table.build_parser()
    with pytest.raises(RequestError, match=r"answer_<model>.jsonl"):
        generate_webpage_data_from_table.main(parser.parse_args([]))
    for folder in ("table/answer", "table/review"):
        Path(folder).mkdir(parents=True)
    for name, rows in {
        "question": [{"question_id": 1, "text": "Q", "category": "conv"}, {"question_id": 2, "text": "R"}],
        "answer/answer_a": [{"question_id": 2, "text": "a2"}, {"question_id": 1, "text": "a1"}],
        "answer/answer_b": [{"question_id": 1, "text": "b1"}],
        "review/review_a": [{"question_id": 1, "content": "8 9", "tuple": [8, 9]}],
    }.items():
        Path(f"table/{name}.jsonl").write_text(as_lines(rows))
    generate_webpage_data_from_table.main(parser.parse_args([]))
    data = json.loads(Path("webpage/data.json").read_text())
    assert data["models"] == ["a", "b"]
    assert data["questions"][0] == {
        "id": 1,
        "category": "conv",
        "question": "Q",
        "answers": {"a": "a1", "b": "b1"},
        "evaluations": {"a": "8 9"},
        "scores": {"a": [8, 9]},
    }
    assert data["questions"][1]["answers"] == {"a": "a2"}
