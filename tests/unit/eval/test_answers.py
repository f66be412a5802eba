"""Answers files, and one run of a generator over its questions: resuming, failures, batches, what is recorded."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava.eval import model_qa, model_vqa_loader, model_vqa_mmbench, model_vqa_qbench, model_vqa_science
from llava.eval.answering.answerer import Answerer
from llava.eval.answering.answers_file import AnswersFile, answer_record, short_uuid
from llava.eval.answering.options import DecodingOptions, RunOptions
from llava.eval.answering.queries import Query
from llava.eval.answering.question_files import Selection, image_path, read_image_questions
from llava.eval.answering.run import answer_queries
from llava.eval.scoring.mmbench_table import options_of, read_table
from llava.program import RequestError

# --- the file ---

ASKED = [{"question_id": id_, "prompt": prompt} for id_, prompt in (("a", "1"), ("a", "2"), ("b", "1"), ("b", "1"))]


def _line(index: int, model: str = "m") -> dict[str, Any]:
    return answer_record(ASKED[index]["question_id"], ASKED[index]["prompt"], f"reply {index}", model, {})


def _replies(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_lines_reach_the_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder that does not exist, or without a folder, where upstream fails."""
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


def test_replacing_answers_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Upstream overwrites them without a message."""
    path = tmp_path / "a.jsonl"
    for count in (0, 1):
        with AnswersFile(str(path), ASKED).open() as write:
            write(1, _line(1))
        assert _replies(path) == ["reply 1"]
        assert len(caplog.records) == count


@pytest.mark.parametrize("cut", ["", '{"question_id": "b", "pro'])
def test_resuming_fills_the_gaps(tmp_path: Path, cut: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two questions may share an id, or even id and prompt; half a line of a run that was killed is dropped."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(_line(index)) + "\n" for index in (1, 2)) + cut)
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
        (json.dumps({"question_id": "c", "prompt": "1"}) + "\n", "line 1: not an answer to one of these questions"),
        (3 * (json.dumps(_line(2)) + "\n"), "line 3: not an answer"),
        ("what\n", "line 1: not JSON"),
        ("\udcff\n", "line 1: not JSON"),  # a byte that is no UTF-8
        ("[]\n", "line 1: not a JSON object"),
    ],
)
def test_resuming_from_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(RequestError, match=message):
        AnswersFile(str(path), ASKED, resume=True)
    assert path.read_text(errors="surrogateescape") == content


def test_resuming_with_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(_line(0, "llava-7b")) + "\n")
    with pytest.raises(RequestError, match="answers of llava-7b, not of llava-13b"):
        AnswersFile(str(path), ASKED, resume=True).check_run("llava-13b", {})


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    """Where the answers record them. Batches and device may differ, and answers that record nothing."""
    path = tmp_path / "a.jsonl"
    first = {"num_visual_tokens": 145, "temperature": 0.0, "batch_size": 1, "device": "cpu", "seconds": 0.1}
    lines = [_line(0), _line(1) | {"metadata": first}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = AnswersFile(str(path), ASKED, resume=True)
    file.check_run("m", {"num_visual_tokens": 145, "temperature": 0, "batch_size": 16, "device": "cuda"})
    with pytest.raises(RequestError, match="made with num_visual_tokens 145 instead of 65; give the first run's flags"):
        file.check_run("m", first | {"num_visual_tokens": 65})


@pytest.mark.parametrize("path", ["", ".", "/dev/null"])
def test_answers_go_to_a_file(path: str) -> None:
    with pytest.raises(RequestError, match=r"--answers-file is .* which is no file"):
        AnswersFile(path, ASKED)


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_cannot_write_one_file(tmp_path: Path, resume: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As when a run that was thought dead still goes on."""
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


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_some = os.write
    with (
        pytest.raises(OSError, match="is the disk full"),
        AnswersFile(str(tmp_path / "a.jsonl"), ASKED).open() as write,
    ):
        write(0, _line(0))
        monkeypatch.setattr(os, "write", lambda descriptor, data: write_some(descriptor, data[:20]))
        write(1, _line(1))
    assert _replies(tmp_path / "a.jsonl") == ["reply 0"]


# --- one run, on the recorded model ---

MODEL = "checkpoints/llava-v1-tiny-mlp2x"


@pytest.fixture
def questions(llava_vectors: Path, tmp_path: Path) -> Path:
    """Five questions; the fourth is about a picture that is not there."""
    rows = [
        {"question_id": index, "image": f"img{index}.png", "text": "What is this?" + index * " Really?"}
        for index in range(5)
    ]
    for name in ("img0.png", "img1.png", "img2.png", "img4.png"):
        shutil.copy(f"assets/images/{name}", tmp_path / name)
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _ask(questions: Path, answers: Path, *flags: str, num_workers: int = 0) -> list[dict[str, Any]]:
    argv = ["--model-path", MODEL, "--question-file", str(questions), "--image-folder", str(questions.parent)]
    argv += ["--answers-file", str(answers), "--temperature", "0", "--max_new_tokens", "4", *flags]
    model_vqa_loader.eval_model(model_vqa_loader.build_parser().parse_args(argv), num_workers=num_workers)
    return [json.loads(line) for line in answers.read_text().splitlines()]


@pytest.mark.parametrize("change", [{"text": 5}, {"image": None}])
def test_a_question_that_is_none_is_named_before_the_model_is_loaded(
    change: dict[str, Any], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps(row | change) + "\n" for row in rows))
    monkeypatch.setattr(Answerer, "open", lambda *a: pytest.fail("loaded"))
    with pytest.raises(RequestError, match=r"q.jsonl, line 1: '(text|image)' is not a text"):
        _ask(questions, tmp_path / "a.jsonl")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_asked_is_named_and_left_out(
    questions: Path, tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is answered, the run ends in an error, and --resume asks what was missing."""
    (tmp_path / "img4.png").write_bytes(b"no picture")
    answers = tmp_path / "a.jsonl"
    with pytest.raises(RequestError, match=r"2 of 5 questions were not answered.*--resume"):
        _ask(questions, answers, "--batch-size", "2", num_workers=num_workers)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("question ")]
    assert [line.split(":")[0] for line in lines] == ["question 3", "question 4"]
    assert "img3.png' does not exist" in lines[0] and "img4.png' is not in a" in lines[1]
    first = answers.read_bytes()
    for name in ("img3.png", "img4.png"):
        shutil.copy(f"assets/images/{name}", tmp_path / name)
    resumed = _ask(questions, answers, "--resume", num_workers=num_workers)
    assert answers.read_bytes().startswith(first)
    whole = _ask(questions, tmp_path / "b.jsonl", num_workers=num_workers)
    assert [(line["question_id"], line["text"]) for line in resumed] == [(q["question_id"], q["text"]) for q in whole]


def test_a_finished_run_is_not_repeated(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask(questions, tmp_path / "a.jsonl", "--limit", "3")
    before = (tmp_path / "a.jsonl").read_bytes()
    monkeypatch.setattr(Answerer, "open", lambda *a: pytest.fail("loaded"))
    assert len(_ask(questions, tmp_path / "a.jsonl", "--limit", "3", "--resume")) == 3
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_an_interrupted_run_is_continued(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it; an earlier file is lost only when there is something to put in its place."""
    answers = tmp_path / "a.jsonl"
    answers.write_text(json.dumps({"text": "of yesterday"}) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "open", lambda *a: (_ for _ in ()).throw(OSError("no such model")))
        with pytest.raises(OSError, match="no such model"):
            _ask(questions, answers, "--limit", "3")
    assert "of yesterday" in answers.read_text()
    answer_batch, batches = Answerer.answer_batch, []

    def interrupted(self: Answerer, examples: Any, decoding: DecodingOptions) -> list[str]:
        batches.append(examples)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return answer_batch(self, examples, decoding)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "answer_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ask(questions, answers, "--limit", "3")
    assert [line["question_id"] for line in map(json.loads, answers.read_text().splitlines())] == [0, 1]
    assert [line["question_id"] for line in _ask(questions, answers, "--limit", "3", "--resume")] == [0, 1, 2]


def test_a_finished_run_with_other_flags_is_refused(questions: Path, tmp_path: Path) -> None:
    """Its answers would be scored as if the new flags had made them."""
    flags = ["--limit", "1", "--record-run"]
    _ask(questions, tmp_path / "a.jsonl", *flags)
    for other in (["--num_beams", "2"], ["--mm_projector_type", "pooling"]):
        with pytest.raises(RequestError, match=f"made with .* instead of {other[1]}; give the first"):
            _ask(questions, tmp_path / "a.jsonl", *flags, *other, "--resume")


def test_a_budget_is_compared_as_the_model_has_it(questions: Path, tmp_path: Path) -> None:
    """E-ViT gives one token more than its size is called."""
    flags = ["--limit", "2", "--record-run", "--mm_projector_type", "evit"]
    first = _ask(questions, tmp_path / "a.jsonl", *flags, "--mm_num_visual_tokens", "5")
    assert first[0]["metadata"]["num_visual_tokens"] == 6
    (tmp_path / "a.jsonl").write_text(json.dumps(first[0]) + "\n")
    for _ in range(2):  # a part of the answers, then all of them
        assert len(_ask(questions, tmp_path / "a.jsonl", *flags, "--mm_num_visual_tokens", "5", "--resume")) == 2
        with pytest.raises(RequestError, match="num_visual_tokens 6 instead of 10"):
            _ask(questions, tmp_path / "a.jsonl", *flags, "--mm_num_visual_tokens", "9", "--resume")


def test_what_a_run_records(questions: Path, tmp_path: Path) -> None:
    plain, recorded = (
        _ask(questions, tmp_path / "a.jsonl", "--limit", "2", *flags) for flags in ((), ("--record-run",))
    )
    assert [line["metadata"] for line in plain] == [{}, {}]
    for line in recorded:
        assert line["metadata"].pop("seconds") > 0
        assert line["metadata"] == {
            "device": "cpu",
            "dtype": "float32",
            "connector": "mlp2x_gelu",
            "num_visual_tokens": 16,
            "conv_mode": "llava_v1",
            "batch_size": 1,
            "temperature": 0.0,
            "top_p": None,
            "num_beams": 1,
            "max_new_tokens": 4,
        }


def test_flags_beyond_upstream_may_be_missing(questions: Path, tmp_path: Path) -> None:
    """Callers that build the arguments themselves, as upstream's did, go on working."""
    args = SimpleNamespace(
        model_path=MODEL,
        model_base=None,
        image_folder=str(tmp_path),
        question_file=str(questions),
        answers_file=str(tmp_path / "a.jsonl"),
        conv_mode="vicuna_v1",
        num_chunks=3,
        chunk_idx=0,
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=3,
    )
    model_vqa_loader.eval_model(args, num_workers=0)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_bad_batch_size() -> None:
    with pytest.raises(RequestError, match="--batch-size is 0"):
        RunOptions("m", "a.jsonl", "llava_v1", batch_size=0)


# --- the messages of the other generators ---


def test_science_messages(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": " Why?\nOptions: (A) x\n<image>"}, {"from": "gpt", "value": "The answer is A."}]
    query = model_vqa_science.science_query({"id": "7", "image": "7/i.png", "conversations": turns}, "images", False)
    text = "Why?\nOptions: (A) x"
    assert query == Query({"question_id": "7", "prompt": f"<image>\n{text}"}, text, "images/7/i.png")
    letter = f"{text}\nAnswer with the option's letter from the given choices directly."
    query = model_vqa_science.science_query({"id": "7", "conversations": turns}, "images", True)
    assert query == Query({"question_id": "7", "prompt": letter}, letter)
    nameless = json.dumps([{"id": 1, "image": None, "conversations": turns}])
    for content, message in (
        *(("{}", "not a JSON list"), ('[{"id": 1}]', "record 0"), ("[3]", "record 0")),
        (nameless, "record 0.* if it has an `image`, its name"),
    ):
        (tmp_path / "q.json").write_text(content)
        with pytest.raises(RequestError, match=message):
            model_vqa_science.read_problems(str(tmp_path / "q.json"))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"A": "x", "B": "y", "C": float("nan"), "D": "z"}, ["x", "y"]),
        ({"A": "x", "B": "None", "C": "y"}, ["x"]),
        ({"A": "x", "B": "y", "C": "NaN"}, ["x", "y"]),
        ({"A": "x", "B": "y"}, ["x", "y"]),
        ({"A": None}, []),
        ({"A": 1, "B": 2.5, "C": "n", "D": "", "E": "x"}, [1, 2.5, "n"]),
        (dict(zip("ABCDEF", "uvwxyz")), list("uvwxyz")),  # as many letters as the table has columns
        ({"A": "x", "C": "y"}, ["x"]),
    ],
)
def test_mmbench_options(cells: dict[str, Any], expected: list[Any]) -> None:
    assert list(options_of(cells).values()) == expected


@pytest.mark.parametrize("cell", ["", "17", "@@@"])
def test_a_table_s_row_without_a_picture_is_named(
    cell: str, llava_vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where pandas makes a number of the cell, or nothing."""
    (tmp_path / "t.tsv").write_text(f"index\tquestion\tA\tB\timage\n7\tq\tx\ty\t{cell}\n")
    argv = ["--model-path", MODEL, "--question-file", str(tmp_path / "t.tsv"), "--temperature", "0"]
    args = model_vqa_mmbench.build_parser().parse_args([*argv, "--answers-file", str(tmp_path / "a.jsonl")])
    with pytest.raises(RequestError, match="1 of 1 questions were not answered"):
        model_vqa_mmbench.eval_model(args, num_workers=0)
    assert "question 7: image data is not " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, r"line 2: 'text' is not a text but 'None'"),
        ({"image": 5}, r"line 2: 'image' is not a text but '5'"),
        ({"question_id": [1]}, r"line 2: 'question_id' is not a text or a whole number"),
    ],
)
def test_questions_are_checked_before_a_model_is_loaded(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The scorers would refuse such ids after hours."""
    row = {"question_id": 1, "image": "a.png", "text": "?"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(RequestError, match=message):
        read_image_questions(str(tmp_path / "q.jsonl"), "", Selection())


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


@pytest.mark.parametrize(
    ("module", "temperature"), [(model_vqa_qbench, 0), (model_qa, 0.7)], ids=["qbench is greedy", "qa samples"]
)
def test_fixed_decoding(module: Any, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the fields that identify a question when a run is resumed."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "llava.eval.answering.run.answer_queries", lambda q, run, decoding, **k: seen.update(k, decoding=decoding)
    )
    item = {"img_path": "a.png", "question": "?", "candidates": ["x"], "question_id": 1, "text": "?"}
    content = json.dumps([item]) if module is model_vqa_qbench else json.dumps(item)
    (tmp_path / "q").write_text(content)
    if module is model_qa:
        module.eval_model("m", str(tmp_path / "q"), "a.jsonl")
    else:
        args = module.build_parser().parse_args(["--questions-file", str(tmp_path / "q")])
        module.eval_model(args)
    assert seen["decoding"] == DecodingOptions(temperature=temperature, max_new_tokens=1024)
    assert seen["key_fields"] == (("question_id",) if module is model_qa else ("img_path", "question"))


def test_paths_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert image_path("~/my images", "a.png") == f"{tmp_path}/my images/a.png"
    assert AnswersFile("~/a.jsonl", ASKED).path == f"{tmp_path}/a.jsonl"
    with pytest.raises(RequestError, match=f"there is no folder '{tmp_path}/my models/llava'"):
        Answerer.open("~/my models/llava", None)


def test_an_unknown_template_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    run = RunOptions("/nowhere/m", str(tmp_path / "a"), "nope")
    with pytest.raises(RequestError, match="no conversation template 'nope'"):
        answer_queries([Query({"question_id": 1, "prompt": ""}, "")], run, DecodingOptions())


def test_qbench(llava_vectors: Path, tmp_path: Path) -> None:
    """A joined path, a newline in the Chinese message, and JSON lines as answers, all of which upstream gets wrong."""
    item = {"img_path": "img0.png", "question": "Is it sharp?", "candidates": ["Yes", "No"], "correct_ans": "Yes"}
    message = "Is it sharp?\nChoose between one of the options as follows:\nA. Yes\nB. No\n"
    assert model_vqa_qbench.qbench_query(item, "p", "en") == Query(item, message, "p/img0.png")
    chinese = model_vqa_qbench.qbench_query(item, "p", "zh").message
    assert chinese == "Is it sharp?\n在下列选项中选择一个:\nA. Yes\nB. No\n"
    for change, message in (
        ({"candidates": None}, "entry 1: 'candidates' is not a list"),
        ({"img_path": 1}, "img_path"),
    ):
        (tmp_path / "q.json").write_text(json.dumps([item | change]))
        with pytest.raises(RequestError, match=message):
            model_vqa_qbench.read_items(str(tmp_path / "q.json"))
    (tmp_path / "q.json").write_text(json.dumps([item, item | {"question": "Is it dark?"}]))
    argv = ["--model-path", MODEL, "--image-folder", "assets/images", "--questions-file", str(tmp_path / "q.json")]
    argv += ["--answers-file", str(tmp_path / "a.jsonl")]
    model_vqa_qbench.eval_model(model_vqa_qbench.build_parser().parse_args(argv), num_workers=0)
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line.pop("response") != "" for line in answers] == [True, True]
    assert answers == [item, item | {"question": "Is it dark?"}]


def test_plain_language_model(llava_vectors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert model_qa.reply_of(" ASSISTANT: It is.</s> USER: more") == "It is."
    assert model_qa.reply_of("It is so") == "It is so"
    prompt = model_qa.open_prompt("Why?", 0, None, "default")
    assert prompt.endswith(" USER: Why? ")
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "text": "Why?"}\n{"question_id": 2, "text": "How so?"}\n')
    flags = ["--model-name", "assets/base-llama", "--question-file", str(tmp_path / "q.jsonl")]
    flags += ["--answers-file", str(tmp_path / "a.jsonl"), "--batch-size", "2"]
    model_qa.main(model_qa.build_parser().parse_args(flags))
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [list(line) for line in answers] == 2 * [["question_id", "text", "answer_id", "model_id", "metadata"]]
    assert [line["question_id"] for line in answers] == [1, 2]
