"""Prompts of ScienceQA problems, in every format.

A format is `INPUT-OUTPUT`, for example `QCM-LEA`. Letters of the input: Question, Context, Multiple choices, Lecture,
Explanation; of the output: Answer, Lecture, Explanation, Plan (with headings).
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.json_files import require_fields
from llava.program import RequestError

LETTERS = ("A", "B", "C", "D", "E")

Problem = Mapping[str, Any]
Problems = Mapping[str, Problem]


@dataclass(frozen=True)
class _Parts:
    """The texts of a problem, from which prompts are composed."""

    question: str
    context: str
    choices: str
    answer: str
    lecture: str
    solution: str

    @property
    def ask(self) -> str:
        return f"Question: {self.question}\n"

    @property
    def setting(self) -> str:
        return f"Context: {self.context}\n"

    @property
    def options(self) -> str:
        return f"Options: {self.choices}\n"

    @property
    def verdict(self) -> str:
        return f"The answer is {self.answer}."


def _because(*texts: str) -> str:
    return f"BECAUSE: {' '.join(texts)}"


_OPTIONAL = ("hint", "caption", "lecture", "solution", "image")

_INPUTS: Mapping[str, Callable[[_Parts], str]] = {
    "CQM": lambda p: f"{p.setting}{p.ask}{p.options}",
    "QCM": lambda p: f"{p.ask}{p.setting}{p.options}",
    "QCML": lambda p: f"{p.ask}{p.setting}{p.options}{_because(p.lecture)}\n",
    "QCME": lambda p: f"{p.ask}{p.setting}{p.options}{_because(p.solution)}\n",
    "QCMLE": lambda p: f"{p.ask}{p.setting}{p.options}{_because(p.lecture, p.solution)}\n",
    "QCLM": lambda p: f"{p.ask}{p.setting}{_because(p.lecture)}\n{p.options}",
    "QCEM": lambda p: f"{p.ask}{p.setting}{_because(p.solution)}\n{p.options}",
    "QCLEM": lambda p: f"{p.ask}{p.setting}{_because(p.lecture, p.solution)}\n{p.options}",
}

_OUTPUTS: Mapping[str, Callable[[_Parts], str]] = {
    "A": lambda p: p.verdict,
    "AL": lambda p: f"{p.verdict} {_because(p.solution)}",  # AL has the solution, AE the lecture, as upstream
    "AE": lambda p: f"{p.verdict} {_because(p.lecture)}",
    "ALE": lambda p: f"{p.verdict} {_because(p.lecture, p.solution)}",
    "AEL": lambda p: f"{p.verdict} {_because(p.solution, p.lecture)}",
    "LA": lambda p: f"{p.lecture} {p.verdict}",
    "EA": lambda p: f"{p.solution} {p.verdict}",
    "LEA": lambda p: f"{p.lecture} {p.solution} {p.verdict}",
    "ELA": lambda p: f"{p.solution} {p.lecture} {p.verdict}",
    "LEPA": lambda p: (
        (f"LECTURE: {p.lecture}\n" if p.lecture else "")
        + (f"SOLUTION: {p.solution}\n" if p.solution else "")
        + f"###\nANSWER: {p.answer}."
    ),
}


def build_prompt_chatbot(
    problems: Problems,
    shot_qids: Sequence[str],
    prompt_format: str,
    use_caption: bool = False,
    options: Sequence[str] = LETTERS,
    is_test: bool = False,
) -> dict[str, tuple[str, str]]:
    """Return problem id -> (human turn, model turn), without the leading labels.

    Args:
        prompt_format: for example "QCM-LEA".
        use_caption: add the caption of the image to the context.
        is_test: leave the answer out of the output.

    Raises:
        RequestError: unknown format, or a problem without a required field or with too many choices; names the problem.
    """
    pairs = {}
    for problem_id in shot_qids:
        question, answer = _example(problems, problem_id, prompt_format, use_caption, options, is_test)
        pairs[problem_id] = (_without_label(question, "Question: "), _without_label(answer, "Answer: "))
    return pairs


def build_prompt(problems: Problems, shot_qids: Sequence[str], test_qid: str, args: Any) -> str:
    """Return solved examples and one open problem for a text model, separated by empty lines.

    Args:
        shot_qids: ids of the examples.
        test_qid: id of the open problem.
        args: any object with `prompt_format`, `use_caption`, `options`.

    Raises:
        RequestError: see `build_prompt_chatbot`.
    """
    common = (args.prompt_format, args.use_caption, args.options)
    solved = ["\n".join(_example(problems, problem_id, *common, is_test=False)) for problem_id in shot_qids]
    return "\n\n".join([*solved, "\n".join(_example(problems, test_qid, *common, is_test=True))])


def build_prompt_gpt4(problems: Problems, shot_qids: Sequence[str], test_qid: str, args: Any) -> list[dict[str, str]]:
    """Return the same prompt as chat messages: system, then user and assistant in turn, the open problem last.

    Raises:
        RequestError: see `build_prompt_chatbot`.
    """
    common = (args.prompt_format, args.use_caption, args.options)
    messages = [{"role": "system", "content": "You answer multiple-choice questions about science."}]
    for problem_id in shot_qids:
        question, answer = _example(problems, problem_id, *common, is_test=False)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question, _ = _example(problems, test_qid, *common, is_test=True)
    return [*messages, {"role": "user", "content": question}]


def _example(
    problems: Problems, problem_id: str, prompt_format: str, use_caption: bool, options: Sequence[str], is_test: bool
) -> tuple[str, str]:
    """Return input and output of one problem, with labels."""
    write_input, write_output = _writers(prompt_format)
    if problem_id not in problems:
        raise RequestError(f"there is no problem {problem_id!r}; the split and the problems must be of one release")
    parts = _parts(problems[problem_id], problem_id, use_caption, options)
    answer = "Answer:" if is_test else f"Answer: {write_output(parts)}"
    return _tidy(write_input(parts)), _tidy(answer)


def _writers(prompt_format: str) -> tuple[Callable[[_Parts], str], Callable[[_Parts], str]]:
    source, dash, target = prompt_format.partition("-")
    if not dash or source not in _INPUTS or target not in _OUTPUTS:
        raise RequestError(
            f"unknown prompt format {prompt_format!r}; it is INPUT-OUTPUT with one of {', '.join(_INPUTS)} and one of "
            f"{', '.join(_OUTPUTS)}"
        )
    return _INPUTS[source], _OUTPUTS[target]


def _parts(problem: Problem, problem_id: str, use_caption: bool, options: Sequence[str]) -> _Parts:
    place = f"problem {problem_id}"
    require_fields(problem, place, {"question": str, "choices": list[str], "answer": int})
    require_fields({name: problem.get(name) or "" for name in _OPTIONAL}, place, dict.fromkeys(_OPTIONAL, str))
    choices, answer = problem["choices"], problem["answer"]
    if len(choices) > len(options) or not 0 <= answer < len(choices):
        raise RequestError(f"problem {problem_id}: {len(choices)} choices, answer {answer}, {len(options)} letters")
    context = [problem.get("hint") or "", (problem.get("caption") or "") if use_caption else ""]
    return _Parts(
        question=problem["question"],
        context=" ".join(context).strip() or "N/A",
        choices=" ".join(f"({letter}) {choice}" for letter, choice in zip(options, choices)),
        answer=options[answer],
        lecture=_with_line_breaks(problem.get("lecture") or ""),
        solution=_with_line_breaks(problem.get("solution") or ""),
    )


def _with_line_breaks(text: str) -> str:
    return text.replace("\\n", "\n")


def _tidy(text: str) -> str:
    """Replace double spaces by one, in a single pass as upstream does, and remove an empty explanation."""
    return text.replace("  ", " ").strip().removesuffix("BECAUSE:").strip()


def _without_label(text: str, label: str) -> str:
    return text.replace(label, "") if text.startswith(label) else text
