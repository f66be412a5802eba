"""What the three ScienceQA scorers share: problems, the letter in a reply, the result file (contract: eval.md 4.2)."""

import argparse
import os
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.scoring.json_files import read_json_object, require_fields
from llava.program import RequestError

FAILED = "FAILED"

# The last dot stands for any sign (*compat*).
_ANSWER = re.compile(r"The answer is ([A-Z]).")


def parse_choice(text: str, options: Sequence[str]) -> str:
    """The letter that a reply gives, or FAILED.

    Either the reply is an option's letter; or it begins with a letter, a period and a space; or exactly one
    `The answer is X.` stands in it.
    """
    if text in options:
        return text
    if len(text) >= 3 and text[0] in string.ascii_uppercase and text[1:3] == ". ":
        return text[0]
    return parse_sentence(text)


def parse_sentence(text: str) -> str:
    """The letter of the only `The answer is X.` in a reply, or FAILED."""
    matches = _ANSWER.findall(text)
    return matches[0] if len(matches) == 1 else FAILED


def choice_index(letter: str, choices: int, options: Sequence[str]) -> int:
    """Index of a letter among the first `choices` options; -1 where it is not among them."""
    offered = list(options[:choices])
    return offered.index(letter) if letter in offered else -1


def result_record(
    accuracy: float, correct: int, results: Mapping[str, int], outputs: Mapping[str, str]
) -> dict[str, Any]:
    """Content of a result file: choices and replies by problem id."""
    return {
        "acc": accuracy,
        "correct": correct,
        "count": len(results),
        "results": dict(results),
        "outputs": dict(outputs),
    }


def option_letters(words: Sequence[str]) -> list[str]:
    """The letters of `--options`, given as `A B C`, `A,B,C` or `ABC` (E-13).

    Raises:
        RequestError: not different capital letters.
    """
    letters = [letter for word in words for letter in word.replace(",", "").replace(" ", "")]
    if not letters or len(set(letters)) < len(letters) or not set(letters) <= set(string.ascii_uppercase):
        raise RequestError(f"--options {' '.join(words)}: it takes different capital letters, such as A B C D E")
    return letters


def add_science_arguments(parser: argparse.ArgumentParser) -> None:
    """--base-dir, --split, --options."""
    parser.add_argument("--base-dir", type=str, required=True, help="folder of pid_splits.json and problems.json")
    parser.add_argument("--split", type=str, default="test", help="key of pid_splits.json")
    parser.add_argument("--options", type=str, nargs="+", default=list("ABCDE"), help="letters of the choices")


def read_problems(base_dir: str, split: str, options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The problems of a split, by id, in its order.

    Raises:
        RequestError: no such split, an empty one, or a problem that is missing or unusable; names the file.
    """
    splits_path, path = (os.path.join(base_dir, name) for name in ("pid_splits.json", "problems.json"))
    splits, problems = read_json_object(splits_path), read_json_object(path)
    if split not in splits:
        raise RequestError(f"{splits_path} has no split {split!r}; it has {', '.join(splits)}")
    require_fields(splits, splits_path, {split: list[str]})
    if not splits[split]:
        raise RequestError(f"{splits_path}: the split {split!r} is empty")
    for problem_id in splits[split]:
        if problem_id not in problems:
            raise RequestError(f"{path} lacks problem {problem_id!r} of the split {split!r}")
        place = f"{path}, problem {problem_id}"
        require_fields(problems[problem_id], place, {"choices": list, "answer": int})
        if not 0 <= problems[problem_id]["answer"] < len(options):
            raise RequestError(f"{place}: answer {problems[problem_id]['answer']} has no letter; give more --options")
    return {problem_id: problems[problem_id] for problem_id in splits[split]}


def read_outputs(path: str) -> dict[str, str]:
    """Problem id -> reply, from a result file (`eval_science_qa --output-result`).

    Raises:
        RequestError: it is not a result file.
    """
    return read_json_object(path, {"outputs": dict[str, str]})["outputs"]
