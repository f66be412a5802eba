"""ScienceQA accuracy of an answers file (contract: eval.md 4.2)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Mapping
from typing import Any

from llava.eval.scoring.answers import PROMPTED_FIELDS, Answer, match_answers, note
from llava.eval.scoring.json_files import read_json_lines, write_json
from llava.eval.scoring.science_qa import (
    FAILED,
    add_science_arguments,
    choice_index,
    option_letters,
    parse_choice,
    read_problems,
    result_record,
)
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import run_program


def judge(
    problems: Mapping[str, Mapping[str, Any]], answers: Mapping[str, Answer], options: list[str]
) -> list[dict[str, Any]]:
    """One entry of `--output-file` per problem, in their order; a problem without an answer has failed.

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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_science_arguments(parser)
    parser.add_argument("--result-file", type=str, required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--output-file", type=str, required=True, help="right and wrong answers, JSON")
    parser.add_argument("--output-result", type=str, required=True, help="accuracy, choices and replies, JSON")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    options = option_letters(args.options)
    problems = read_problems(args.base_dir, args.split, options)
    answers = read_json_lines(args.result_file, PROMPTED_FIELDS)
    by_id, coverage = match_answers(problems, answers, args.result_file)
    entries = judge(problems, by_id, options)
    chosen = {
        entry["question_id"]: choice_index(entry["parsed_ans"], len(problems[entry["question_id"]]["choices"]), options)
        for entry in entries
    }
    right = {problem_id: chosen[problem_id] == problem["answer"] for problem_id, problem in problems.items()}
    pictured = [entry["question_id"] for entry in entries if entry["is_multimodal"]]
    count, correct = len(problems), sum(right.values())
    accuracy = correct / count * 100
    # Upstream divides by zero where no problem has a picture (E-8).
    picture_accuracy = sum(right[name] for name in pictured) / len(pictured) * 100 if pictured else float("nan")
    print(
        f"Total: {count}, Correct: {correct}, Accuracy: {accuracy:.2f}%, IMG-Accuracy: {picture_accuracy:.2f}%",
    )
    for line in coverage.warnings("count as wrong"):
        note(line)
    if not pictured:
        note("no recorded prompt holds <image>, so there is no IMG-Accuracy")
    write_json(
        args.output_file,
        {
            "correct": [entry for entry in entries if right[entry["question_id"]]],
            "incorrect": [entry for entry in entries if not right[entry["question_id"]]],
        },
        indent=2,
    )
    outputs = {entry["question_id"]: entry["pred"] for entry in entries}
    write_json(args.output_result, result_record(accuracy, correct, chosen, outputs), indent=2)
    write_score(
        args.score_file,
        "SQA",
        experiment_name(args.result_file, args.experiment),
        "mean",
        [item(name, int(right[name])) for name in pictured or problems],
        details={
            "subset": "problems with a picture" if pictured else "all problems",
            "accuracy": accuracy,
            "image_accuracy": picture_accuracy if pictured else None,
            "unparsable": sum(entry["parsed_ans"] == FAILED for entry in entries),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        answers=answers,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
