"""TextVQA accuracy of answers files (contract: eval.md 4.3)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.scoring.answers import PROMPTED_FIELDS, IncompleteError, note, some
from llava.eval.scoring.json_files import read_json, read_json_lines, require_rows
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import RequestError, run_program

Key = tuple[str, str]  # image id, question in lower case

_OCR_PROMPT = re.compile(r"Question: (.*) Short answer:", re.DOTALL)


class _OcrPromptError(IncompleteError, AttributeError):
    """Upstream stumbles over such a prompt with an AttributeError (*compat*)."""


@dataclass(frozen=True)
class TextVQAResult:
    """
    Attributes:
        scores: one per answer, 0 to 1, in the order of the answers.
        keys: its (image id, question).
        missing: questions of the annotation without an answer.
        expected: questions of the annotation.
        with_ocr: answers whose prompt held OCR tokens.
    """

    scores: list[float]
    keys: list[Key]
    missing: list[Key]
    expected: int
    with_ocr: int

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * sum(self.scores) / len(self.scores)

    @property
    def ocr_note(self) -> str:
        """Whether the model was shown OCR tokens: figures with and without them do not compare."""
        if self.with_ocr in (0, len(self.scores)):
            return f"OCR tokens in the prompt: {'yes' if self.with_ocr else 'no'}"
        return f"OCR tokens in the prompt: in {self.with_ocr} of {len(self.scores)} (mixed)"


def prompt_processor(prompt: str) -> str:
    """The question inside a prompt of the question file, in lower case.

    Raises:
        IncompleteError (an AssertionError): the prompt has none of the three known forms.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = _OCR_PROMPT.search(prompt)
        if match is None:
            raise _OcrPromptError(f"no 'Question: ... Short answer:' in the prompt {prompt!r}")
        question = match.group(1)
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        question = lines[1] if prompt.startswith("Reference OCR token:") else lines[0]
    elif len(lines) == 2:
        question = lines[0]
    else:
        raise IncompleteError(
            f"the prompt {prompt!r} has none of the forms of TextVQA's question files: a question line and an "
            "instruction line, with or without a line of reference OCR tokens"
        )
    return question.lower()


def shows_ocr(prompt: str) -> bool:
    """Whether the prompt lists words that a text reader found in the picture."""
    return prompt.startswith("OCR tokens: ") or "Reference OCR token: " in prompt


def read_annotations(annotation_file: str) -> dict[Key, list[str]]:
    """The ten human answers to each question.

    Raises:
        RequestError: not a TextVQA annotation file.
    """
    content = read_json(annotation_file)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise RequestError(f"{annotation_file}: no list 'data'; it should be TextVQA_0.5.1_val.json")
    fields = {"image_id": str | int, "question": str, "answers": list[str]}
    require_rows(content["data"], annotation_file, fields)
    return {(str(entry["image_id"]), entry["question"].lower()): entry["answers"] for entry in content["data"]}


def score_answers(
    annotations: Mapping[Key, Sequence[str]], answers: Sequence[Mapping[str, Any]], place: str
) -> TextVQAResult:
    """Compare each answer with those of ten humans.

    Args:
        answers: with `question_id` (the image id), `prompt`, `text`.
        place: file of the answers, for errors.

    Raises:
        RequestError: there are no answers, or one has an unknown prompt or no annotation.
    """
    if not answers:
        raise RequestError(f"{place} holds no answers")
    evaluator = TextVQAAccuracyEvaluator()
    keys, scores = [], []
    for number, answer in enumerate(answers, start=1):
        try:
            key = (str(answer["question_id"]), prompt_processor(answer["prompt"]))
            if key not in annotations:
                raise RequestError(
                    f"the annotations have no question {key[1]!r} about picture {key[0]!r}; is it the same split?"
                )
            scores.append(evaluator.score(answer["text"], annotations[key]))
        except RequestError as error:
            raise type(error)(f"{place}, answer {number}: {error}") from error
        keys.append(key)
    answered = set(keys)
    missing = [key for key in annotations if key not in answered]
    with_ocr = sum(shows_ocr(answer["prompt"]) for answer in answers)
    return TextVQAResult(scores, keys, missing, len(annotations), with_ocr)


def eval_single(
    annotation_file: str, result_file: str, score_file: str | None = None, experiment: str | None = None
) -> TextVQAResult:
    """Print upstream's lines for one answers file; what upstream does not say goes to stderr.

    Raises:
        RequestError: see `score_answers`.
    """
    print(os.path.splitext(os.path.basename(result_file))[0])
    annotations = read_annotations(annotation_file)
    answers = read_json_lines(result_file, PROMPTED_FIELDS)
    result = score_answers(annotations, answers, result_file)
    print(f"Samples: {len(result.scores)}\nAccuracy: {result.accuracy:.2f}%\n")
    note(result.ocr_note)
    if result.missing:
        missing = some(f"{image}: {question}" for image, question in result.missing)
        note(f"{len(result.missing)} of {result.expected} questions have no answer and are left out: {missing}")
    if len(set(result.keys)) < len(result.keys):
        note(f"{len(result.keys) - len(set(result.keys))} answers repeat a question; all of them count")
    write_score(
        score_file,
        "TextVQA",
        experiment_name(result_file, experiment),
        "mean",
        [item(f"{image}: {question}", score) for (image, question), score in zip(result.keys, result.scores)],
        details={"accuracy": result.accuracy, "samples": len(result.scores), "note": result.ocr_note},
        expected=result.expected,
        answered=len(set(result.keys)),
        answers=answers,
    )
    return result


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", type=str, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", type=str, help="answers of the generator, JSON lines")
    parser.add_argument("--result-dir", type=str, help="score all .jsonl files of this folder")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: nothing to score, or input that cannot be used.
    """
    if args.result_file is None and args.result_dir is None:
        raise RequestError("nothing to score: give --result-file or --result-dir")
    if args.result_dir is not None and args.score_file is not None:
        raise RequestError("--score-file takes the score of one --result-file, not of a --result-dir")
    if args.result_file is not None:
        eval_single(args.annotation_file, args.result_file, args.score_file, args.experiment)
    if args.result_dir is not None:
        for name in sorted(os.listdir(args.result_dir)):
            if name.endswith(".jsonl"):
                eval_single(args.annotation_file, os.path.join(args.result_dir, name))
            else:
                print(f"Skipping {name}")


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
