"""MM-Vet: a judge grades each reply from 0.0 to 1.0; means over all questions and per capability.

The protocol is the public one (arXiv 2308.02490): the judge sees question, ground truth and prediction after a few
graded examples, and replies with a number in steps of 0.1. Published figures depend on the official prompt and judge.
The prompt here is our own, so that figures of this program are comparable with each other, but not exactly with
published ones.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.eval.judging.arguments import add_judge_arguments, judge_options
from llava.eval.judging.judge import Judge, JudgeOptions, map_in_order
from llava.eval.judging.record_file import open_records
from llava.eval.scoring.json_files import read_json, read_json_lines, require_fields
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

Record = Mapping[str, Any]

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
SYSTEM = "You grade answers against a known correct answer."
INSTRUCTION = """\
Grade the prediction by the ground truth with a number from 0.0 (all wrong) to 1.0 (all right), in steps of 0.1. \
In the ground truth, <AND> joins parts that must all be in a fully right prediction, and <OR> joins answers of which \
any one is right. Further words do no harm unless they are wrong. Reply with the number alone."""
# question, ground truth, prediction, grade
EXAMPLES = (
    ("What does the sign say?", "stop", "The red sign at the corner says STOP.", "1.0"),
    ("What does the sign say?", "stop", "The sign tells drivers to give way.", "0.0"),
    ("Which two fruits lie on the plate?", "apple <AND> pear", "I see an apple on the plate.", "0.5"),
    ("How many wheels are there in all?", "6 <OR> six", "There are 6 wheels.", "1.0"),
    (
        "Name the four colors of the flag.",
        "red <AND> white <AND> blue <AND> green",
        "Red, white, blue and black.",
        "0.7",
    ),
    ("Why does the crowd laugh?", "the dog runs off with the bride's shoe", "A dog is running about.", "0.3"),
)

_GRADE = re.compile(r"(?<![\d.-])(?:1(?:\.0+)?|0(?:\.\d+)?|\.\d+)(?!\.?\d)")


def grading_prompt(question: str, truth: str, prediction: str) -> str:
    """Return the judge's user message."""
    rows = [*EXAMPLES, (question, truth, prediction, "")]
    blocks = [f"Question: {q}\nGround truth: {t}\nPrediction: {p}\nGrade: {g}".rstrip() for q, t, p, g in rows]
    return "\n\n".join([INSTRUCTION, *blocks])


def parse_grade(reply: str) -> float | None:
    """Return the only number from 0 to 1 in a reply, to one decimal; None if there is none, or several."""
    found = _GRADE.findall(reply)
    return round(float(found[0]), 1) if len(found) == 1 else None


@dataclass(frozen=True)
class MMVetScore:
    """Mean grades in percent.

    Attributes:
        capabilities: capability -> mean over the questions that need it; without capabilities that no question needs.
        unparsed: number of questions whose grade cannot be read; they are in no mean.
        unanswered: number of questions without a reply; they count with grade 0.
    """

    total: float
    capabilities: dict[str, float]
    unparsed: int
    unanswered: int

    def lines(self) -> list[str]:
        return [f"{name}: {value:.1f}" for name, value in [*self.capabilities.items(), ("total", self.total)]]


def mean_grades(questions: Mapping[str, Record], grades: Mapping[str, float | None], answered: int) -> MMVetScore:
    """Average the grades.

    Args:
        questions: question id -> `{"capability": [...], ...}`.
        grades: question id -> grade, None if it cannot be read.
        answered: number of questions with a reply.

    Raises:
        RequestError: there is no grade.
    """
    read = {key: grade for key, grade in grades.items() if grade is not None}
    if not read:
        raise RequestError("none of the judge's replies holds a grade")
    capabilities = {}
    for name in CAPABILITIES:
        own = [grade for key, grade in read.items() if name in questions[key]["capability"]]
        if own:
            capabilities[name] = 100 * sum(own) / len(own)
    total = 100 * sum(read.values()) / len(read)
    return MMVetScore(total, capabilities, len(grades) - len(read), len(questions) - answered)


def grade_all(
    questions: Mapping[str, Record], replies: Mapping[str, str], judge: Judge, output: str, parallel: int
) -> dict[str, float | None]:
    """Return question id -> grade.

    Each grade is written to `output` as one line; a run continues after the lines of an earlier one.

    Raises:
        RequestError: the judge fails, see `Judge.ask`; or `output` holds grades of other replies.
    """
    answered = [key for key in questions if key in replies]
    with open_records(output, append=True) as (done, write):
        earlier = read_json_lines(output, ("question_id", "prediction", "content")) if done else []
        if done > len(answered) or any(
            record["question_id"] != key or record["prediction"] != replies[key]
            for key, record in zip(answered, earlier)
        ):
            raise RequestError(f"{output} holds grades of other replies; name another --output")
        left = answered[done:]

        def ask(key: str) -> str:
            question = questions[key]
            return judge.ask(SYSTEM, grading_prompt(question["question"], question["answer"], replies[key]))

        for key, content in zip(left, map_in_order(ask, left, parallel)):
            write({"question_id": key, "prediction": replies[key], "content": content, "grade": parse_grade(content)})
    records = read_json_lines(output, ("question_id", "content")) if answered else []
    grades = {record["question_id"]: parse_grade(record["content"]) for record in records}
    return {key: grades.get(key) if key in replies else 0.0 for key in questions}


def score(annotation_file: str, result_file: str, output: str, judge: JudgeOptions, parallel: int) -> Score:
    """Let a judge grade the replies of `scripts/convert_mmvet_for_eval.py`.

    Args:
        output: file of the grades; an earlier run is continued.
        parallel: number of concurrent requests.

    Raises:
        RequestError: unusable input, or the judge fails.
        ImportError: `openai` is missing.
    """
    questions, replies = read_json(annotation_file), read_json(result_file)
    for path, value in ((annotation_file, questions), (result_file, replies)):
        if not isinstance(value, dict):
            raise RequestError(f"{path}: not an object by question id; see scripts/convert_mmvet_for_eval.py")
    for key, question in questions.items():
        require_fields(question, f"{annotation_file}, {key}", ("question", "answer", "capability"))
    known = {key: text for key, text in replies.items() if key in questions}
    grades = grade_all(questions, known, Judge(judge), output, parallel)
    result = mean_grades(questions, grades, len(known))
    notes = []
    if result.unanswered:
        notes.append(f"{result.unanswered} of {len(questions)} questions have no answer and count as wrong")
    if result.unparsed:
        notes.append(f"{result.unparsed} grades cannot be read and are left out")
    return Score(
        "MM-Vet",
        result_file,
        "mean",
        [
            item(key, grade, "_".join(questions[key]["capability"]))
            for key, grade in grades.items()
            if grade is not None
        ],
        details={**result.capabilities, "total": result.total, "judge": judge.model},
        expected=len(questions),
        answered=len(known),
        lines=result.lines(),
        notes=notes,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="mm-vet.json of the benchmark")
    parser.add_argument("--result-file", required=True, help="made by scripts/convert_mmvet_for_eval.py")
    parser.add_argument("--output", required=True, help="grades, one line each; an earlier run is continued")
    add_judge_arguments(parser, model="gpt-4", parallel=4)
    parser.set_defaults(max_tokens=16)


def _score_args(args: argparse.Namespace) -> Score:
    judge = judge_options(args, temperature=0.0)
    return score(args.annotation_file, args.result_file, args.output, judge, args.judge_parallel)


BENCHMARK = Benchmark(__doc__, _add_arguments, _score_args)
