"""MM-Vet: a judge grades each reply from 0.0 to 1.0; means for all questions and for each capability.

The protocol is the public one (arXiv 2308.02490): the judge sees question, ground truth and prediction after a few
graded examples, and gives a number in steps of 0.1. Published figures depend on the official prompt and on its judge;
the prompt here is in our own words, so figures of this program compare with one another and not, digit by digit, with
published ones.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.judging.judge import Judge, add_judge_arguments, judge_from, map_in_order
from llava.eval.judging.reviews import reviews_writer
from llava.eval.scoring.json_files import read_json, read_json_lines, require_fields
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import RequestError, run_program

logger = logging.getLogger(__name__)

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
    """The judge's user message."""
    rows = [*EXAMPLES, (question, truth, prediction, "")]
    blocks = [f"Question: {q}\nGround truth: {t}\nPrediction: {p}\nGrade: {g}".rstrip() for q, t, p, g in rows]
    return "\n\n".join([INSTRUCTION, *blocks])


def parse_grade(reply: str) -> float | None:
    """The only number from 0 to 1 in a reply, to one decimal; None where there is none, or several."""
    found = _GRADE.findall(reply)
    return round(float(found[0]), 1) if len(found) == 1 else None


@dataclass(frozen=True)
class MMVetScore:
    """Means in percent over the graded questions.

    Attributes:
        capabilities: name -> mean over the questions that need it; only those that some question needs.
        graded: number of questions in the means; one without a reply counts, with grade 0.
        unparsed: questions whose grade could not be read; they are in no mean.
        unanswered: questions without a reply.
    """

    total: float
    capabilities: dict[str, float]
    graded: int
    unparsed: int
    unanswered: int

    def lines(self) -> list[str]:
        rows = [*self.capabilities.items(), ("total", self.total)]
        return [f"{name}: {value:.1f}" for name, value in rows]


def score(questions: Mapping[str, Record], grades: Mapping[str, float | None], answered: Sequence[str]) -> MMVetScore:
    """
    Args:
        questions: the annotation: id -> `{"capability": [...], ...}`.
        grades: id -> grade, None where it could not be read.
        answered: ids of the questions with a reply.

    Raises:
        RequestError: nothing was graded.
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
    return MMVetScore(total, capabilities, len(read), len(grades) - len(read), len(questions) - len(answered))


def grade_all(
    questions: Mapping[str, Record], replies: Mapping[str, str], judge: Judge, output: str, parallel: int
) -> dict[str, float | None]:
    """Grades by id. Each goes to `output` as a line; those that are there already are not asked for again.

    Raises:
        RequestError: see `Judge.ask`, or `output` belongs to other replies.
    """
    answered = [key for key in questions if key in replies]
    with reviews_writer(output, append=True) as (done, write):
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


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: bad files, or the judge refuses.
    """
    questions, replies = read_json(args.annotation_file), read_json(args.result_file)
    for path, value in ((args.annotation_file, questions), (args.result_file, replies)):
        if not isinstance(value, dict):
            raise RequestError(f"{path}: not an object by question id; see scripts/convert_mmvet_for_eval.py")
    for key, question in questions.items():
        require_fields(question, f"{args.annotation_file}, {key}", ("question", "answer", "capability"))
    known = {key: text for key, text in replies.items() if key in questions}
    grades = grade_all(questions, known, judge_from(args, temperature=0.0), args.output, args.judge_parallel)
    result = score(questions, grades, list(known))
    print("\n".join(result.lines()))
    if result.unanswered:
        print(f"{result.unanswered} of {len(questions)} questions have no answer and count as wrong.", file=sys.stderr)
    if result.unparsed:
        print(f"{result.unparsed} grades could not be read and are left out.", file=sys.stderr)
    write_score(
        args.score_file,
        "MM-Vet",
        experiment_name(args.result_file, args.experiment),
        "mean",
        [
            item(key, grade, "_".join(questions[key]["capability"]))
            for key, grade in grades.items()
            if grade is not None
        ],
        details={**result.capabilities, "total": result.total, "judge": args.judge_model},
        expected=len(questions),
        answered=len(known),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", required=True, help="mm-vet.json of the benchmark")
    parser.add_argument("--result-file", required=True, help="from scripts/convert_mmvet_for_eval.py")
    parser.add_argument(
        "--output", required=True, help="grades, one line each; a run goes on after those that are there"
    )
    add_judge_arguments(parser, model="gpt-4", parallel=4)
    parser.set_defaults(max_tokens=16)
    add_score_arguments(parser)
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
