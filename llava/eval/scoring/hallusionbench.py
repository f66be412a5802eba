"""HallusionBench: accuracy per question, per question pair and per figure.

Annotations: the public `HallusionBench.json` (https://github.com/tianyi-lab/HallusionBench), a list with `category`,
`subcategory`, `set_id`, `figure_id`, `question_id`, `gt_answer` ("1" yes, "0" no). A question pair is one question on
all figures of its set; a figure is all questions on it (figure 0 of category VS is no figure). Both are right if all
their questions are. Answers are JSON lines whose `question_id` is the five names joined by `_`
(`VD_illusion_0_0_0`), or the annotations with `model_prediction` added.

The benchmark's own tool lets GPT-4 judge each reply. Here the reply means yes if it holds the word yes and not no, and
the other way round; any other reply and a missing one are wrong and told (GPT-4 may pass an "uncertain" on the
questions without a picture of category VS).
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.accuracy import by_group, percent, table
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note, some
from llava.eval.scoring.json_files import read_rows, require_rows
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import RequestError, run_program

_FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id", "gt_answer")
_WORD = re.compile("[a-z]+")

Question = Mapping[str, Any]


@dataclass(frozen=True)
class HallusionResult:
    """
    Attributes:
        right: id of a question -> right.
        pairs, figures: id -> all its questions are right.
        unparsable: questions whose reply is neither yes nor no.
    """

    right: dict[str, bool]
    pairs: dict[str, bool]
    figures: dict[str, bool]
    unparsable: list[str]

    def accuracies(self) -> dict[str, float]:
        """aAcc, qAcc, fAcc in percent; fAcc only where there is a figure."""
        levels = {"aAcc": self.right, "qAcc": self.pairs, "fAcc": self.figures}
        return {name: percent(values.values()) for name, values in levels.items() if values}


def question_name(question: Question) -> str:
    """`VD_illusion_0_0_0`: the id by which answers are matched."""
    return "_".join(str(question[field]) for field in _FIELDS[:5])


def parse_reply(text: str) -> bool | None:
    """True for yes, False for no, None for neither or both."""
    words = set(_WORD.findall(text.lower()))
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" in words


def score_replies(questions: Sequence[Question], replies: Mapping[str, str]) -> HallusionResult:
    """
    Args:
        replies: `question_name` -> reply; a missing one is wrong.
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


def read_questions(path: str, pictures_only: bool) -> list[Question]:
    """
    Raises:
        RequestError: not HallusionBench's annotations.
    """
    questions = read_rows(path, dict.fromkeys(_FIELDS, str | int))
    if pictures_only:
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
    """Answers of the generator, or annotations with `model_prediction`, as `question_id` and `text`.

    Raises:
        RequestError: neither.
    """
    rows = read_rows(path)
    if rows and "model_prediction" in rows[0]:
        require_rows(rows, path, dict.fromkeys(_FIELDS, str | int) | {"model_prediction": str})
        return [{"question_id": question_name(row), "text": row["model_prediction"]} for row in rows]
    require_rows(rows, path, ANSWER_FIELDS)
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", type=str, required=True, help="HallusionBench.json")
    parser.add_argument("--result-file", type=str, required=True, help="answers (JSON lines) or its annotated form")
    parser.add_argument("--pictures-only", action="store_true", help="leave out the questions without a picture")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    questions = read_questions(args.annotation_file, args.pictures_only)
    answers = read_replies(args.result_file)
    names = [question_name(question) for question in questions]
    by_id, coverage = match_answers(names, answers, args.result_file)
    result = score_replies(questions, {name: answer["text"] for name, answer in by_id.items()})
    accuracies = result.accuracies()
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy:.2f}%")
    divisions = {
        field: by_group((str(question[field]), result.right[name]) for name, question in zip(names, questions))
        for field in ("category", "subcategory")
    }
    for field, division in divisions.items():
        print("\n".join(table(f"aAcc / {field}", division)))
    for line in coverage.warnings("count as wrong"):
        note(line)
    if result.unparsable:
        note(f"{len(result.unparsable)} replies are neither yes nor no and count as wrong: {some(result.unparsable)}")
    note("replies were read by rule; the benchmark's published figures come from GPT-4 as judge")
    write_score(
        args.score_file,
        "HallusionBench",
        experiment_name(args.result_file, args.experiment),
        "mean",
        [item(name, int(result.right[name]), str(question["category"])) for name, question in zip(names, questions)],
        details={**accuracies, **divisions, "unparsable": len(result.unparsable), "pictures_only": args.pictures_only},
        expected=coverage.expected,
        answered=coverage.answered,
        answers=answers,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
