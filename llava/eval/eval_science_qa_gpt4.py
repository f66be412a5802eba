"""ScienceQA accuracy of GPT-4 with our answers where it gives none (contract: eval.md 4.2).

Only the problems that both answered count. A reply without exactly one `The answer is X.` gives no answer and is wrong;
upstream draws a random choice for it, unseeded (E-13).
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import read_json_lines
from llava.eval.scoring.science_qa import (
    FAILED,
    add_science_arguments,
    choice_index,
    option_letters,
    parse_sentence,
    read_outputs,
    read_problems,
)
from llava.program import RequestError, run_program


@dataclass(frozen=True)
class Verdict:
    """One problem: which choice each model took (-1: none of those offered), and the right one.

    Attributes:
        gpt4_failed: GPT-4's reply gives no letter.
        combined: GPT-4's choice, ours where it failed.
    """

    problem_id: str
    ours: int
    gpt4: int
    gpt4_failed: bool
    truth: int

    @property
    def combined(self) -> int:
        return self.ours if self.gpt4_failed else self.gpt4


def judge(
    problems: Mapping[str, Mapping[str, Any]],
    ours: Mapping[str, str],
    gpt4: Mapping[str, str],
    options: Sequence[str],
) -> list[Verdict]:
    """Verdicts on the problems that both answered.

    Args:
        ours, gpt4: problem id -> reply.

    Raises:
        RequestError: there is no such problem.
    """
    verdicts = []
    for problem_id, problem in problems.items():
        if problem_id in ours and problem_id in gpt4:
            letter = parse_sentence(gpt4[problem_id])
            choices = len(problem["choices"])
            verdicts.append(
                Verdict(
                    problem_id,
                    ours=choice_index(parse_sentence(ours[problem_id]), choices, options),
                    gpt4=choice_index(letter, choices, options),
                    gpt4_failed=letter == FAILED,
                    truth=problem["answer"],
                )
            )
    if not verdicts:
        raise RequestError("no problem of the split is answered in both files; are they of the same split?")
    return verdicts


def read_both(args: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[Verdict]]:
    """`(problems, our replies by problem id, verdicts)` of the command line.

    Raises:
        RequestError: input that cannot be used.
    """
    options = option_letters(args.options)
    problems = read_problems(args.base_dir, args.split, options)
    answers = read_json_lines(args.our_result, ANSWER_FIELDS)
    by_id, coverage = match_answers(problems, answers, args.our_result)
    for line in coverage.warnings("are left out"):
        note(line)
    ours = {problem_id: answer["text"] for problem_id, answer in by_id.items()}
    verdicts = judge(problems, ours, read_outputs(args.gpt4_result), options)
    if len(verdicts) < len(problems):
        note(f"{len(verdicts)} of {len(problems)} problems of the split are answered by both")
    return problems, ours, verdicts


def share_line(name: str, count: int, total: int) -> str:
    """`Total: 4, NAME: 1, Percentage: 25.00%`"""
    return f"Total: {total}, {name}: {count}, Percentage: {100 * count / total:.2f}%"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_science_arguments(parser)
    parser.add_argument("--gpt4-result", type=str, required=True, help="GPT-4's result file (eval_science_qa)")
    parser.add_argument("--our-result", type=str, required=True, help="answers of the generator, JSON lines")
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    _, _, verdicts = read_both(args)
    total = len(verdicts)
    correct = sum(verdict.combined == verdict.truth for verdict in verdicts)
    upper = sum(verdict.truth in (verdict.ours, verdict.gpt4) for verdict in verdicts)
    print(f"Total: {total}, Correct: {correct}, Accuracy: {100 * correct / total:.2f}%")
    print(f"Total: {total}, Correct (upper bound): {upper}, Accuracy: {100 * upper / total:.2f}%")
    print(share_line("GPT-4 without answer", sum(verdict.gpt4_failed for verdict in verdicts), total))


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
