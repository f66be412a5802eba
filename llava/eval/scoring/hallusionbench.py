"""HallusionBench: accuracy per question, per question pair and per figure.

Annotations: the public `HallusionBench.json` (https://github.com/tianyi-lab/HallusionBench), a list with `category`,
`subcategory`, `set_id`, `figure_id`, `question_id`, `gt_answer` ("1" yes, "0" no). A question pair is one question
asked about all figures of its set; a figure groups all questions about it (figure 0 of category VS means "no figure").
A pair or figure is right if all its questions are. Answers are JSON lines whose `question_id` joins the first five
fields with `_` (`VD_illusion_0_0_0`), or the annotations with `model_prediction` added.

The official tool has GPT-4 judge each reply. Here a reply means yes if it contains the word yes and not no, and vice
versa; any other reply, and a missing one, counts as wrong, with a note. (GPT-4 may accept an "uncertain" for the
questions without an image of category VS.)
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, some
from llava.eval.scoring.json_files import read_rows, require_rows
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.program import RequestError

_FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id", "gt_answer")
_WORD = re.compile("[a-z]+")

Question = Mapping[str, Any]


@dataclass(frozen=True)
class HallusionResult:
    """Which questions, pairs and figures are right.

    Attributes:
        right: question name -> right.
        pairs, figures: id -> whether all its questions are right.
        unparsable: questions whose reply is neither yes nor no.
    """

    right: dict[str, bool]
    pairs: dict[str, bool]
    figures: dict[str, bool]
    unparsable: list[str]

    def accuracies(self) -> dict[str, float]:
        """Return aAcc, qAcc and fAcc in percent; fAcc only if there is a figure."""
        levels = {"aAcc": self.right, "qAcc": self.pairs, "fAcc": self.figures}
        return {name: percent(values.values()) for name, values in levels.items() if values}


def question_name(question: Question) -> str:
    """Return the id by which answers are matched, for example `VD_illusion_0_0_0`."""
    return "_".join(str(question[field]) for field in _FIELDS[:5])


def read_questions(path: str, images_only: bool) -> list[Question]:
    """Read the annotations; with `images_only`, without the questions that have no image.

    Raises:
        RequestError: the file does not hold HallusionBench's annotations.
    """
    questions = read_rows(path, dict.fromkeys(_FIELDS, str | int))
    if images_only:
        questions = [question for question in questions if str(question.get("visual_input")) != "0"]
    names = [question_name(question) for question in questions]
    if not names:
        raise RequestError(f"{path} holds no questions")
    if len(set(names)) < len(names):
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        raise RequestError(f"{path}: {some(twice)} occurs twice")
    for name, question in zip(names, questions):
        if str(question["gt_answer"]) not in ("0", "1"):
            raise RequestError(f"{path}, {name}: gt_answer is {question['gt_answer']!r}; it must be 0 or 1")
    return list(questions)


def read_replies(path: str) -> list[dict[str, Any]]:
    """Read answers, or annotations with `model_prediction`, as rows of `question_id` and `text`.

    Raises:
        RequestError: the file holds neither.
    """
    rows = read_rows(path)
    if rows and "model_prediction" in rows[0]:
        require_rows(rows, path, dict.fromkeys(_FIELDS, str | int) | {"model_prediction": str})
        return [{"question_id": question_name(row), "text": row["model_prediction"]} for row in rows]
    require_rows(rows, path, ANSWER_FIELDS)
    return rows


def parse_reply(text: str) -> bool | None:
    """Return True for yes, False for no, None for neither or both."""
    words = set(_WORD.findall(text.lower()))
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" in words


def score_replies(questions: Sequence[Question], replies: Mapping[str, str]) -> HallusionResult:
    """Compare replies with the annotations.

    Args:
        replies: question name -> reply; a missing one counts as wrong.
    """
    meanings = {name: parse_reply(text) for name, text in replies.items()}
    right: dict[str, bool] = {}
    pairs: dict[str, list[bool]] = {}
    figures: dict[str, list[bool]] = {}
    for question in questions:
        name = question_name(question)
        meaning = meanings.get(name)
        right[name] = meaning is not None and meaning == (str(question["gt_answer"]) == "1")
        category, subcategory, number, figure, asked = (str(question[field]) for field in _FIELDS[:5])
        pairs.setdefault(f"{category}_{subcategory}_{number}_{asked}", []).append(right[name])
        if not (category == "VS" and figure == "0"):
            figures.setdefault(f"{category}_{subcategory}_{number}_{figure}", []).append(right[name])
    return HallusionResult(
        right,
        pairs={name: all(values) for name, values in pairs.items()},
        figures={name: all(values) for name, values in figures.items()},
        unparsable=[name for name in right if name in meanings and meanings[name] is None],
    )


def score(annotation_file: str, result_file: str, images_only: bool = False) -> Score:
    """Score answers to HallusionBench; unusable input raises RequestError."""
    questions = read_questions(annotation_file, images_only)
    answers = read_replies(result_file)
    names = [question_name(question) for question in questions]
    by_id, coverage = match_answers(names, answers, result_file)
    result = score_replies(questions, {name: answer["text"] for name, answer in by_id.items()})
    accuracies = result.accuracies()
    divisions = {
        field: by_group((str(question[field]), result.right[name]) for name, question in zip(names, questions))
        for field in ("category", "subcategory")
    }
    notes = coverage.warnings("count as wrong")
    if result.unparsable:
        unparsable = some(result.unparsable)
        notes.append(f"{len(result.unparsable)} replies are neither yes nor no and count as wrong: {unparsable}")
    notes.append("replies were read by rule; the benchmark's published figures come from GPT-4 as judge")
    return Score(
        "HallusionBench",
        result_file,
        "mean",
        [item(name, int(result.right[name]), str(question["category"])) for name, question in zip(names, questions)],
        details={**accuracies, **divisions, "unparsable": len(result.unparsable), "pictures_only": images_only},
        expected=coverage.expected,
        answered=coverage.answered,
        lines=[
            *(f"{name}: {accuracy:.2f}%" for name, accuracy in accuracies.items()),
            *(line for field, division in divisions.items() for line in table(f"aAcc / {field}", division)),
        ],
        notes=notes,
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="HallusionBench.json")
    parser.add_argument("--result-file", required=True, help="answers (JSON lines), or annotations with predictions")
    parser.add_argument("--pictures-only", action="store_true", help="leave out the questions without an image")


BENCHMARK = Benchmark(
    __doc__, _add_arguments, lambda args: score(args.annotation_file, args.result_file, args.pictures_only)
)
