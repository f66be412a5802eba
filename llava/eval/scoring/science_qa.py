"""ScienceQA: accuracy over all problems, and over those with an image.

A missing answer counts as wrong. The score of the score file is that of the problems with an image (SQA-img), if any
recorded prompt contains `<image>`.
"""

import argparse
import os
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.scoring.answers import PROMPTED_FIELDS, Answer, match_answers
from llava.eval.scoring.json_files import read_json_lines, read_json_object, require_fields, write_json
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

FAILED = "FAILED"

# The last dot matches any character, as in upstream's scorer.
_ANSWER = re.compile(r"The answer is ([A-Z]).")

Problems = Mapping[str, Mapping[str, Any]]


def option_letters(words: Sequence[str]) -> list[str]:
    """Return the letters of `--options`, given as `A B C`, `A,B,C` or `ABC`.

    Raises:
        RequestError: the words are not different capital letters.
    """
    letters = [letter for word in words for letter in word.replace(",", "").replace(" ", "")]
    if not letters or len(set(letters)) < len(letters) or not set(letters) <= set(string.ascii_uppercase):
        raise RequestError(f"--options {' '.join(words)}: it takes different capital letters, such as A B C D E")
    return letters


def read_problems(base_dir: str, split: str, options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the problems of a split, by id, in its order.

    Raises:
        RequestError: the split does not exist or is empty, or a problem is missing or unusable; names the file.
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


def parse_choice(text: str, options: Sequence[str]) -> str:
    """Return the letter that a reply gives, or FAILED.

    The reply is an option's letter; or it begins with a letter, a period and a space; or it contains exactly one
    `The answer is X.`.
    """
    if text in options:
        return text
    if len(text) >= 3 and text[0] in string.ascii_uppercase and text[1:3] == ". ":
        return text[0]
    return parse_sentence(text)


def parse_sentence(text: str) -> str:
    """Return the letter of the only `The answer is X.` in a reply, or FAILED."""
    matches = _ANSWER.findall(text)
    return matches[0] if len(matches) == 1 else FAILED


def choice_index(letter: str, choices: int, options: Sequence[str]) -> int:
    """Return the index of a letter among the first `choices` options; -1 if it is not one of them."""
    offered = list(options[:choices])
    return offered.index(letter) if letter in offered else -1


def judge(problems: Problems, answers: Mapping[str, Answer], options: Sequence[str]) -> list[dict[str, Any]]:
    """Return one entry of `--output-file` per problem, in their order; a problem without an answer has failed.

    Args:
        answers: problem id -> answer with `prompt` and `text`.
    """
    entries = []
    for problem_id, problem in problems.items():
        answer = answers.get(problem_id, {"prompt": "Unknown", "text": FAILED})
        entries.append(
            {
                "question_id": problem_id,
                "parsed_ans": parse_choice(answer["text"], options),
                "ground_truth": options[problem["answer"]],
                "question": answer["prompt"],
                "pred": answer["text"],
                "is_multimodal": "<image>" in answer["prompt"],
            }
        )
    return entries


def write_result(
    path: str, accuracy: float, correct: int, results: Mapping[str, int], outputs: Mapping[str, str]
) -> None:
    """Write a result file: accuracy in percent, and index of the choice (-1: none) and reply per problem."""
    record = {
        "acc": accuracy,
        "correct": correct,
        "count": len(results),
        "results": dict(results),
        "outputs": dict(outputs),
    }
    write_json(path, record, indent=2)


def score(
    base_dir: str, split: str, options: Sequence[str], result_file: str, output_file: str, output_result: str
) -> Score:
    """Score answers to ScienceQA, and write upstream's two output files.

    Args:
        options: letters of the choices.

    Raises:
        RequestError: unusable input.
    """
    problems = read_problems(base_dir, split, options)
    answers = read_json_lines(result_file, PROMPTED_FIELDS)
    by_id, coverage = match_answers(problems, answers, result_file)
    entries = judge(problems, by_id, options)
    chosen = {
        entry["question_id"]: choice_index(entry["parsed_ans"], len(problems[entry["question_id"]]["choices"]), options)
        for entry in entries
    }
    right = {problem_id: chosen[problem_id] == problem["answer"] for problem_id, problem in problems.items()}
    with_image = [entry["question_id"] for entry in entries if entry["is_multimodal"]]
    count, correct = len(problems), sum(right.values())
    accuracy = correct / count * 100
    # Upstream divides by zero if no problem has an image.
    image_accuracy = sum(right[name] for name in with_image) / len(with_image) * 100 if with_image else float("nan")
    notes = coverage.warnings("count as wrong")
    if not with_image:
        notes.append("no recorded prompt contains <image>, so there is no IMG-Accuracy")
    by_verdict: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": []}
    for entry in entries:
        by_verdict["correct" if right[entry["question_id"]] else "incorrect"].append(entry)
    write_json(output_file, by_verdict, indent=2)
    outputs = {entry["question_id"]: entry["pred"] for entry in entries}
    write_result(output_result, accuracy, correct, chosen, outputs)
    return Score(
        "SQA",
        result_file,
        "mean",
        [item(name, int(right[name])) for name in with_image or problems],
        details={
            "subset": "problems with an image" if with_image else "all problems",
            "accuracy": accuracy,
            "image_accuracy": image_accuracy if with_image else None,
            "unparsable": sum(entry["parsed_ans"] == FAILED for entry in entries),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        lines=[f"Total: {count}, Correct: {correct}, Accuracy: {accuracy:.2f}%, IMG-Accuracy: {image_accuracy:.2f}%"],
        notes=notes,
        answers=answers,
    )


def add_problem_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --base-dir, --split and --options, which all ScienceQA scorers have."""
    parser.add_argument("--base-dir", required=True, help="folder of pid_splits.json and problems.json")
    parser.add_argument("--split", default="test", help="key of pid_splits.json")
    parser.add_argument("--options", nargs="+", default=list("ABCDE"), help="letters of the choices")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_problem_arguments(parser)
    parser.add_argument("--result-file", required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--output-file", required=True, help="right and wrong answers, JSON")
    parser.add_argument("--output-result", required=True, help="accuracy, choices and replies, JSON")


def _score_args(args: argparse.Namespace) -> Score:
    options = option_letters(args.options)
    return score(args.base_dir, args.split, options, args.result_file, args.output_file, args.output_result)


BENCHMARK = Benchmark(__doc__, _add_arguments, _score_args)
