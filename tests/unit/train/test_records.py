"""Data files: both formats, malformed ones, and what the records cost in memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llava.train import records as records_module
from llava.train.records import load_records


def record(answer: str = "A cat.", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    return {"id": "r", "image": "a.png", "conversations": turns} | more


# Text that needs escapes or several bytes, a half of a surrogate pair, braces in text, numbers, nothing.
RECORDS = [record(), record('é "}],[{" 猫 🐈 \\ \n'), record("\ud83d"), record(score=[1.5, -3, None, True]), record("")]


def write(folder: Path, records: list[dict], **options: Any) -> tuple[str, str]:
    (folder / "a.json").write_text(json.dumps(records, **options), encoding="utf-8")
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    return str(folder / "a.json"), str(folder / "a.jsonl")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_json_and_jsonl_hold_the_same(
    chunk: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "CHUNK", chunk)
    for path in write(tmp_path, RECORDS, indent=indent):
        found = load_records(path)
        assert list(found) == RECORDS
        assert len(found) == 5 and found[-1] == found[4] == RECORDS[4] and found[1:3] == RECORDS[1:3]
        with pytest.raises(IndexError):
            found[5]
    for path in write(tmp_path, []):
        assert list(load_records(path)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "", "not valid JSON"),
        ("a.json", "[", "not valid JSON"),
        ("a.json", '[{"conversations": []}', r"not valid JSON \(Expecting ',' delimiter"),
        ("a.json", '[{"conversations": []} {"conversations": []}]', r"not valid JSON \(Expecting ',' delimiter"),
        ("a.json", '[{"conversations": []},]', "not valid JSON"),
        ("a.json", "[] []", r"not valid JSON \(Extra data"),
        ("a.jsonl", "[1,\n", "not valid JSON"),
        ("a.json", "{}", "holds a dict"),
        ("a.json", '[{"id": 1}]', "record 0 has no list of 'conversations'"),
        ("a.jsonl", '{"conversations": []}\n[1]', "record 1 has no list of 'conversations'"),
    ],
)
def test_malformed_data_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_records(str(tmp_path / name))


def test_records_take_little_more_memory_than_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 million captions are 36 GB in every process as Python objects."""
    monkeypatch.setattr(records_module, "CHUNK", 1 << 14)
    count = 3000
    captions = [record(f"A photo of {i} cats.", id=f"{i:09}", image=f"{i:05}/{i:09}.jpg") for i in range(count)]
    for path in write(tmp_path, captions, indent=2):
        tracemalloc.start()
        records = load_records(path)
        used, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        text = sum(len(json.dumps(caption, separators=(",", ":"))) for caption in captions)
        assert used < 1.3 * (text + 8 * count)
        assert peak < 2 * text, "the whole list was there as objects"
        assert list(records) == captions
