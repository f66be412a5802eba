"""The answer generators: question files, the messages that each asks, and fixed decoding."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import model_qa, model_vqa_mmbench, model_vqa_qbench, model_vqa_science
from llava.eval.answering.options import DecodingOptions
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import Selection, get_chunk, image_path, split_list
from llava.eval.scoring.mmbench_table import options_of, read_table
from llava.program import RequestError
from tests.support.scoring import Capture, as_lines

MODEL = "checkpoints/llava-v1-tiny-mlp2x"


# --- question files ---


def test_chunks() -> None:
    """Chunks after the last item are empty, where upstream fails."""
    items = list(range(5))
    assert split_list(items, 2) == [[0, 1, 2], [3, 4]]
    assert [get_chunk(items, 4, k) for k in range(4)] == [[0, 1], [2, 3], [4], []]
    assert [get_chunk([], 2, k) for k in range(2)] == [[], []]
    for n, k in ((2, 2), (2, -1), (0, 0)):
        with pytest.raises(RequestError):
            get_chunk(items, n, k)


def test_the_limit_applies_before_the_chunks() -> None:
    items = list(range(9))
    assert Selection().of(items) == Selection(limit=None).of(items) == items
    assert Selection(limit=5, num_chunks=2, chunk_idx=1).of(items) == [3, 4]
    assert Selection(limit=0).of(items) == []
    with pytest.raises(RequestError, match="--limit is -1"):
        Selection(limit=-1)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert image_path("~/my images", "a.png") == f"{tmp_path}/my images/a.png"


# --- ScienceQA ---

TURNS = [{"from": "human", "value": " Why?\nOptions: (A) x\n<image>"}, {"from": "gpt", "value": "The answer is A."}]


def test_science_messages() -> None:
    text = "Why?\nOptions: (A) x"
    query = model_vqa_science.science_query({"id": "7", "image": "7/i.png", "conversations": TURNS}, "images", False)
    assert query == Query({"question_id": "7", "prompt": f"<image>\n{text}"}, text, "images/7/i.png")
    letter = f"{text}\nAnswer with the option's letter from the given choices directly."
    query = model_vqa_science.science_query({"id": "7", "conversations": TURNS}, "images", True)
    assert query == Query({"question_id": "7", "prompt": letter}, letter)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "not a JSON list"),
        ([{"id": 1}], "record 0"),
        ([3], "record 0"),
        ([{"id": 1, "image": None, "conversations": TURNS}], "record 0.* if it has an `image`, its name"),
    ],
)
def test_unusable_science_files(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=message):
        model_vqa_science.read_problems(str(tmp_path / "q.json"))


# --- MMBench ---


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"A": "x", "B": "y", "C": float("nan"), "D": "z"}, ["x", "y"]),
        ({"A": "x", "B": "None", "C": "y"}, ["x"]),
        ({"A": "x", "B": "y", "C": " NaN"}, ["x", "y"]),
        ({"A": "x", "B": "y"}, ["x", "y"]),
        ({"A": None}, []),
        ({"A": 1, "B": 2.5, "C": "n", "D": "", "E": "x"}, [1, 2.5, "n"]),
        ({"A": "x", "C": "y"}, ["x"]),
        (dict(zip("ABCDEF", "uvwxyz")), list("uvwxyz")),  # as many letters as the table has option columns
    ],
)
def test_mmbench_options(cells: dict[str, Any], expected: list[Any]) -> None:
    assert options_of(cells) == dict(zip("ABCDEF", expected))


def test_mmbench_messages(tmp_path: Path) -> None:
    row = {"index": 5, "question": "Which?", "hint": "Look.", "A": "x", "B": "y", "C": "z", "image": "AAAA"}
    rounds = list(model_vqa_mmbench.mmbench_queries(row, all_rounds=True, suffix="!"))
    assert [query.fields["option_char"] for query in rounds] == [["A", "B", "C"], ["B", "C", "A"], ["C", "A", "B"]]
    assert rounds[1].message == "Look.\nWhich?\nA. y\nB. z\nC. x!"
    assert rounds[1].fields["prompt"] == "Look.\nWhich?\nA. y\nB. z\nC. x"
    assert len(list(model_vqa_mmbench.mmbench_queries(row | {"A": None}, all_rounds=True, suffix=""))) == 1
    (tmp_path / "t.tsv").write_text("index\tquestion\n1\tq\n")
    with pytest.raises(RequestError, match="no column image and no column A"):
        read_table(str(tmp_path / "t.tsv"), model_vqa_mmbench.COLUMNS)


@pytest.mark.parametrize("cell", ["", "17", "@@@"])
def test_a_row_without_an_image_is_named(cell: str, llava_vectors: Path, tmp_path: Path, capsys: Capture) -> None:
    """Also if pandas reads the cell as a number or as missing."""
    (tmp_path / "t.tsv").write_text(f"index\tquestion\tA\tB\timage\n7\tq\tx\ty\t{cell}\n")
    argv = ["--model-path", MODEL, "--question-file", str(tmp_path / "t.tsv"), "--temperature", "0"]
    args = model_vqa_mmbench.build_parser().parse_args([*argv, "--answers-file", str(tmp_path / "a.jsonl")])
    with pytest.raises(RequestError, match="1 of 1 questions were not answered"):
        model_vqa_mmbench.eval_model(args, num_workers=0)
    assert "question 7: image data is not " in capsys.readouterr().err


# --- Q-Bench and plain language models ---

ITEM = {"img_path": "img0.png", "question": "Is it sharp?", "candidates": ["Yes", "No"], "correct_ans": "Yes"}


def test_qbench(llava_vectors: Path, tmp_path: Path) -> None:
    """A joined path, a newline in the Chinese message, and JSON lines as answers, all of which upstream gets wrong."""
    message = "Is it sharp?\nChoose between one of the options as follows:\nA. Yes\nB. No\n"
    assert model_vqa_qbench.qbench_query(ITEM, "p", "en") == Query(ITEM, message, "p/img0.png")
    chinese = model_vqa_qbench.qbench_query(ITEM, "p", "zh").message
    assert chinese == "Is it sharp?\n在下列选项中选择一个:\nA. Yes\nB. No\n"
    (tmp_path / "q.json").write_text(json.dumps([ITEM, ITEM | {"question": "Is it dark?"}]))
    argv = ["--model-path", MODEL, "--image-folder", "assets/images", "--questions-file", str(tmp_path / "q.json")]
    argv += ["--answers-file", str(tmp_path / "a.jsonl")]
    model_vqa_qbench.eval_model(model_vqa_qbench.build_parser().parse_args(argv), num_workers=0)
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line.pop("response") != "" for line in answers] == [True, True]
    assert answers == [ITEM, ITEM | {"question": "Is it dark?"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"candidates": None}, "entry 1: 'candidates' is not a list"), ({"img_path": 1}, "entry 1: 'img_path'")],
)
def test_unusable_qbench_files(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([ITEM | change]))
    with pytest.raises(RequestError, match=message):
        model_vqa_qbench.read_items(str(tmp_path / "q.json"))


def test_fixed_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q-Bench is decoded greedily, plain models are sampled; and the fields that identify a question."""
    seen: list[tuple[DecodingOptions, tuple[str, ...]]] = []
    monkeypatch.setattr(
        "llava.eval.answering.run.answer_queries",
        lambda q, run, decoding, **k: seen.append((decoding, k["key_fields"])),
    )
    (tmp_path / "q.json").write_text(json.dumps([ITEM]))
    (tmp_path / "q.jsonl").write_text(as_lines([{"question_id": 1, "text": "?"}]))
    args = model_vqa_qbench.build_parser().parse_args(["--questions-file", str(tmp_path / "q.json")])
    model_vqa_qbench.eval_model(args)
    model_qa.eval_model("m", str(tmp_path / "q.jsonl"), "a.jsonl")
    assert seen == [
        (DecodingOptions(temperature=0, max_new_tokens=1024), ("img_path", "question")),
        (DecodingOptions(temperature=0.7, max_new_tokens=1024), ("question_id",)),
    ]


def test_plain_language_model(llava_vectors: Path, tmp_path: Path) -> None:
    assert model_qa.reply_of(" ASSISTANT: It is.</s> USER: more") == "It is."
    assert model_qa.reply_of("It is so") == "It is so"
    assert model_qa.open_prompt("Why?", 0, None, "default").endswith(" USER: Why? ")
    (tmp_path / "q.jsonl").write_text(
        as_lines({"question_id": n, "text": text} for n, text in ((1, "Why?"), (2, "How?")))
    )
    flags = ["--model-name", "assets/base-llama", "--question-file", str(tmp_path / "q.jsonl")]
    flags += ["--answers-file", str(tmp_path / "a.jsonl"), "--batch-size", "2"]
    model_qa.main(model_qa.build_parser().parse_args(flags))
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [list(line) for line in answers] == 2 * [["question_id", "text", "answer_id", "model_id", "metadata"]]
    assert [line["question_id"] for line in answers] == [1, 2]
