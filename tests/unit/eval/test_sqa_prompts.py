"""ScienceQA's prompts in every format."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava.program import RequestError
from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
from convert_sqa_to_llava_base_prompt import build_prompt, build_prompt_chatbot, build_prompt_gpt4

PROBLEM = {
    "question": "Why?",
    "hint": "It rains.",
    "caption": "A cloud.",
    "choices": ["x", "y"],
    "answer": 1,
    "lecture": "L1.\\nL2.",
    "solution": "S.",
}
BARE = PROBLEM | {"lecture": "", "solution": "", "hint": ""}
PROBLEMS = {"1": PROBLEM, "2": BARE}

QUESTION, CONTEXT, OPTIONS = "Why?", "Context: It rains.", "Options: (A) x (B) y"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("QCM", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}"),
        ("CQM", f"{CONTEXT}\nQuestion: {QUESTION}\n{OPTIONS}"),
        ("QCML", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}\nBECAUSE: L1.\nL2."),
        ("QCME", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}\nBECAUSE: S."),
        ("QCMLE", f"{QUESTION}\n{CONTEXT}\n{OPTIONS}\nBECAUSE: L1.\nL2. S."),
        ("QCLM", f"{QUESTION}\n{CONTEXT}\nBECAUSE: L1.\nL2.\n{OPTIONS}"),
        ("QCEM", f"{QUESTION}\n{CONTEXT}\nBECAUSE: S.\n{OPTIONS}"),
        ("QCLEM", f"{QUESTION}\n{CONTEXT}\nBECAUSE: L1.\nL2. S.\n{OPTIONS}"),
    ],
)
def test_inputs(code: str, text: str) -> None:
    assert build_prompt_chatbot(PROBLEMS, ["1"], f"{code}-A") == {"1": (text, "The answer is B.")}


@pytest.mark.parametrize(
    ("code", "text", "bare"),
    [
        ("A", "The answer is B.", "The answer is B."),
        ("AL", "The answer is B. BECAUSE: S.", "The answer is B."),  # AL has the solution, AE the lecture, as upstream
        ("AE", "The answer is B. BECAUSE: L1.\nL2.", "The answer is B."),
        ("ALE", "The answer is B. BECAUSE: L1.\nL2. S.", "The answer is B."),
        ("AEL", "The answer is B. BECAUSE: S. L1.\nL2.", "The answer is B."),
        ("LA", "L1.\nL2. The answer is B.", "The answer is B."),
        ("EA", "S. The answer is B.", "The answer is B."),
        ("LEA", "L1.\nL2. S. The answer is B.", " The answer is B."),
        ("ELA", "S. L1.\nL2. The answer is B.", " The answer is B."),
        ("LEPA", "LECTURE: L1.\nL2.\nSOLUTION: S.\n###\nANSWER: B.", "###\nANSWER: B."),
    ],
)
def test_outputs(code: str, text: str, bare: str) -> None:
    pairs = build_prompt_chatbot(PROBLEMS, ["1", "2"], f"QCM-{code}")
    assert (pairs["1"][1], pairs["2"][1]) == (text, bare)
    assert pairs["2"][0] == "Why?\nContext: N/A\nOptions: (A) x (B) y"


def test_a_leading_label_is_removed_everywhere() -> None:
    problems = {"1": PROBLEM | {"question": "Question: Why?"}}
    assert build_prompt_chatbot(problems, ["1"], "QCM-A")["1"][0].startswith("Why?\n")
    assert "\nQuestion: Question: Why?\n" in build_prompt_chatbot(problems, ["1"], "CQM-A")["1"][0]


def test_captions_letters_and_tests() -> None:
    pair = build_prompt_chatbot(PROBLEMS, ["1"], "QCM-A", use_caption=True, options=["P", "Q"], is_test=True)["1"]
    assert pair == ("Why?\nContext: It rains. A cloud.\nOptions: (P) x (Q) y", "Answer:")


def test_prompts_for_text_models() -> None:
    args = SimpleNamespace(prompt_format="QCM-A", use_caption=False, options=list("ABCDE"))
    solved = "Question: Why?\nContext: N/A\nOptions: (A) x (B) y\nAnswer: The answer is B."
    asked = "Question: Why?\nContext: It rains.\nOptions: (A) x (B) y"
    assert build_prompt(PROBLEMS, ["2"], "1", args) == f"{solved}\n\n{asked}\nAnswer:"
    messages = build_prompt_gpt4(PROBLEMS, ["2"], "1", args)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in messages[2:]] == ["Answer: The answer is B.", asked]


@pytest.mark.parametrize(
    ("ids", "code", "change", "message"),
    [
        (["1"], "QCM", {}, "unknown prompt format 'QCM'"),
        (["1"], "QCM-X", {}, "unknown prompt format 'QCM-X'"),
        (["9"], "QCM-A", {}, "no problem '9'"),
        (["1"], "QCM-A", {"choices": list("uvwxyz")}, "problem 1: 6 choices"),
        (["1"], "QCM-A", {"answer": 2}, "problem 1: 2 choices, answer 2"),
    ],
)
def test_unusable_input(ids: list[str], code: str, change: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_prompt_chatbot({"1": PROBLEM | change}, ids, code)


@pytest.mark.parametrize("flags", [["--base_dir=."], ["--base-dir", "."]])
def test_command_line_in_both_spellings(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"val": ["1"]}))
    script = str(REPOSITORY / "scripts/convert_sqa_to_llava.py")
    command = [sys.executable, script, "convert_to_llava", *flags, "--split", "val"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "llava_val_QCM-LEA.json").read_text())[0]["id"] == "1"
    command[-1] = "test"
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: ./pid_splits.json has no split 'test'; it has val\n"
