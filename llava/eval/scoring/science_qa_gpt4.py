"""ScienceQA with GPT-4: its answers completed by ours, and its answers after seeing ours.

Only problems that both models answered count. A reply without exactly one `The answer is X.` gives no answer and counts
as wrong; upstream draws an unseeded random choice instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import read_json_lines, read_json_object
from llava.eval.scoring.science_qa import (
    FAILED,
    Problems,
    choice_index,
    parse_sentence,
    read_problems,
    write_result,
)
from llava.program import RequestError


@dataclass(frozen=True)
class Verdict:
    """The choices of both models for one problem (-1: none of those offered), and the right one.

    Attributes:
        gpt4_failed: GPT-4's reply gives no letter.
    """

    problem_id: str
    ours: int
    gpt4: int
    gpt4_failed: bool
    truth: int

    @property
    def combined(self) -> int:
        """GPT-4's choice, or ours if GPT-4 failed."""
        return self.ours if self.gpt4_failed else self.gpt4


@dataclass(frozen=True)
class Comparison:
    """The problems that both models answered.

    Attributes:
        ours: problem id -> our reply.
    """

    problems: dict[str, dict[str, Any]]
    options: Sequence[str]
    ours: dict[str, str]
    verdicts: list[Verdict]


def compare(base_dir: str, split: str, options: Sequence[str], gpt4_result: str, our_result: str) -> Comparison:
    """Read the files of both models.

    Args:
        gpt4_result: GPT-4's result file, made by eval_science_qa.
        our_result: our answers.

    Raises:
        RequestError: unusable input.
    """
    problems = read_problems(base_dir, split, options)
    answers = read_json_lines(our_result, ANSWER_FIELDS)
    by_id, coverage = match_answers(problems, answers, our_result)
    for line in coverage.warnings("are left out"):
        note(line)
    ours = {problem_id: answer["text"] for problem_id, answer in by_id.items()}
    gpt4 = read_json_object(gpt4_result, {"outputs": dict[str, str]})["outputs"]
    verdicts = judge(problems, ours, gpt4, options)
    if len(verdicts) < len(problems):
        note(f"{len(verdicts)} of {len(problems)} problems of the split are answered by both")
    return Comparison(problems, options, ours, verdicts)


def judge(
    problems: Problems, ours: Mapping[str, str], gpt4: Mapping[str, str], options: Sequence[str]
) -> list[Verdict]:
    """Return verdicts on the problems that both models answered.

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


def combined_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the report on GPT-4's answers, completed by ours."""
    total = len(verdicts)
    correct = sum(verdict.combined == verdict.truth for verdict in verdicts)
    upper = sum(verdict.truth in (verdict.ours, verdict.gpt4) for verdict in verdicts)
    return [
        f"Total: {total}, Correct: {correct}, Accuracy: {100 * correct / total:.2f}%",
        f"Total: {total}, Correct (upper bound): {upper}, Accuracy: {100 * upper / total:.2f}%",
        _failures_line(verdicts),
    ]


def _failures_line(verdicts: Sequence[Verdict]) -> str:
    total, count = len(verdicts), sum(verdict.gpt4_failed for verdict in verdicts)
    return f"Total: {total}, GPT-4 without answer: {count}, Percentage: {100 * count / total:.2f}%"


def score_requery(comparison: Comparison, requery_result: str, output_result: str) -> list[str]:
    """Score GPT-4's answers to a second query that shows our answer, write the result file, and return the report.

    If a second reply is missing or gives no letter, our answer counts.

    Raises:
        RequestError: unusable input.
    """
    verdicts = comparison.verdicts
    answers = read_json_lines(requery_result, ANSWER_FIELDS)
    requeried, coverage = match_answers([verdict.problem_id for verdict in verdicts], answers, requery_result)
    for line in coverage.warnings("count as ours"):
        note(line)
    chosen: dict[str, int] = {}
    outputs: dict[str, str] = {}
    for verdict in verdicts:
        name = verdict.problem_id
        reply = requeried[name]["text"] if name in requeried else FAILED
        letter = parse_sentence(reply)
        if letter == FAILED:
            outputs[name], chosen[name] = comparison.ours[name], verdict.ours
        else:
            choices = len(comparison.problems[name]["choices"])
            outputs[name], chosen[name] = reply, choice_index(letter, choices, comparison.options)
    total = len(verdicts)
    correct = sum(chosen[verdict.problem_id] == verdict.truth for verdict in verdicts)
    right = {
        "ours": sum(verdict.ours == verdict.truth for verdict in verdicts),
        "GPT-4": sum(verdict.gpt4 == verdict.truth for verdict in verdicts),
        "GPT-4, ours where it gives none": sum(verdict.combined == verdict.truth for verdict in verdicts),
        "requery": correct,
        "upper bound": sum(
            verdict.truth in (verdict.ours, verdict.gpt4, chosen[verdict.problem_id]) for verdict in verdicts
        ),
    }
    write_result(output_result, 100 * correct / total, correct, chosen, outputs)
    lines = [
        f"Total: {total}, Correct ({name}): {count}, Accuracy: {100 * count / total:.2f}%"
        for name, count in right.items()
    ]
    lines.insert(2, _failures_line(verdicts))
    return lines
