"""TextVQA: accuracy of short answers against ten human answers.

Answers and annotations are paired by image id and question; the question is taken from the recorded prompt. Questions
without an answer are left out, as by upstream.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.answers import PROMPTED_FIELDS, IncompleteError, some
from llava.eval.scoring.json_files import read_json, read_json_lines, require_rows
from llava.eval.scoring.score_file import Score, item
from llava.eval.scoring.scorer import Benchmark
from llava.eval.scoring.short_answers import TextVQAAccuracyEvaluator
from llava.program import RequestError

Key = tuple[str, str]  # image id, question in lower case

_OCR_PROMPT = re.compile(r"Question: (.*) Short answer:", re.DOTALL)


class _OcrPromptError(IncompleteError, AttributeError):
    """Also an AttributeError, as upstream raises for such a prompt."""


@dataclass(frozen=True)
class TextVQAResult:
    """Accuracies of a set of answers.

    Attributes:
        scores: one per answer, 0 to 1, in the order of the answers.
        keys: (image id, question) of each answer.
        missing: questions of the annotations without an answer.
        expected: number of questions in the annotations.
        with_ocr: number of answers whose prompt contains OCR tokens.
    """

    scores: list[float]
    keys: list[Key]
    missing: list[Key]
    expected: int
    with_ocr: int

    @property
    def accuracy(self) -> float:
        """Accuracy over all answers, in percent."""
        return 100 * sum(self.scores) / len(self.scores)

    @property
    def ocr_note(self) -> str:
        """Whether the prompts contain OCR tokens: figures with and without them are not comparable."""
        if self.with_ocr in (0, len(self.scores)):
            return f"OCR tokens in the prompt: {'yes' if self.with_ocr else 'no'}"
        return f"OCR tokens in the prompt: in {self.with_ocr} of {len(self.scores)} (mixed)"


def prompt_processor(prompt: str) -> str:
    """Return the question inside a prompt of the question file, in lower case.

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
    """Return True if the prompt lists words that an OCR system found in the image."""
    return prompt.startswith("OCR tokens: ") or "Reference OCR token: " in prompt


def read_annotations(annotation_file: str) -> dict[Key, list[str]]:
    """Read the ten human answers to each question.

    Raises:
        RequestError: the file does not hold TextVQA's annotations.
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
    """Compare each answer with those of ten people.

    Args:
        answers: with `question_id` (the image id), `prompt`, `text`.
        place: file of the answers, for error messages.

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
                    f"the annotations have no question {key[1]!r} about image {key[0]!r}; is it the same split?"
                )
            scores.append(evaluator.score(answer["text"], annotations[key]))
        except RequestError as error:
            raise type(error)(f"{place}, answer {number}: {error}") from error
        keys.append(key)
    answered = set(keys)
    missing = [key for key in annotations if key not in answered]
    with_ocr = sum(shows_ocr(answer["prompt"]) for answer in answers)
    return TextVQAResult(scores, keys, missing, len(annotations), with_ocr)


def score(annotation_file: str, result_file: str) -> Score:
    """Score answers to TextVQA; unusable input raises RequestError."""
    annotations = read_annotations(annotation_file)
    answers = read_json_lines(result_file, PROMPTED_FIELDS)
    result = score_answers(annotations, answers, result_file)
    answered = len(set(result.keys))
    notes = [result.ocr_note]
    if result.missing:
        missing = some(f"{image}: {question}" for image, question in result.missing)
        notes.append(f"{len(result.missing)} of {result.expected} questions have no answer and are left out: {missing}")
    if answered < len(result.keys):
        notes.append(f"{len(result.keys) - answered} answers repeat a question; all of them count")
    return Score(
        "TextVQA",
        result_file,
        "mean",
        [item(f"{image}: {question}", value) for (image, question), value in zip(result.keys, result.scores)],
        details={"accuracy": result.accuracy, "samples": len(result.scores), "note": result.ocr_note},
        expected=result.expected,
        answered=answered,
        lines=[f"Samples: {len(result.scores)}", f"Accuracy: {result.accuracy:.2f}%", ""],
        notes=notes,
        answers=answers,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", required=True, help="answers of the generator, JSON lines")


BENCHMARK = Benchmark(__doc__, _add_arguments, lambda args: score(args.annotation_file, args.result_file))
