"""Reviews: a judge compares two answers to each question. Rules, prompts, scores and the reviews file."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.judging.judge import Judge, map_in_order
from llava.eval.judging.record_file import open_records
from llava.eval.scoring.answers import IncompleteError
from llava.eval.scoring.json_files import read_json, read_json_lines, require_fields
from llava.program import RequestError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

RULE_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "table", "rule.json")
SYSTEM = "You are an impartial judge of the quality of answers."
UNPARSED = [-1, -1]


@dataclass(frozen=True)
class ReviewFiles:
    """The files of a review.

    Attributes:
        question: questions, JSON lines.
        reference: reference answers, one line per question.
        candidate: answers to compare with them, one line per question.
        rule: prompts by category; None is the file of this package.
        output: the reviews file.
    """

    question: str
    reference: str
    candidate: str
    rule: str | None
    output: str


@dataclass(frozen=True)
class ImageContext:
    """How the judge, who does not see the images, learns what they show.

    Attributes:
        rule_prefix: prefix of a question's category in the keys of the rules.
        fields: required fields of a line of the context file, next to `image`.
        describe: returns the text for one line of the context file.
    """

    rule_prefix: str
    fields: Mapping[str, Any]
    describe: Callable[[Record], str]


def _describe_by_caption(context: Record) -> str:
    caption = context["caption"]
    return "\n".join(caption) if isinstance(caption, list) else caption


def _describe_by_boxes(context: Record) -> str:
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in context["instances"]]
    return "\n".join(context["captions"]) + "\n\n" + "\n".join(boxes)


# LLaVA-Bench (in the wild), and LLaVA-Bench (COCO) with captions and object boxes.
BENCH_CONTEXT = ImageContext("llava_bench_", {"caption": str | list}, _describe_by_caption)
VISUAL_CONTEXT = ImageContext("", {"captions": list[str], "instances": list}, _describe_by_boxes)


@dataclass(frozen=True)
class Comparison:
    """One question with its two answers, ready for the judge.

    Attributes:
        number: number of the question, from 1.
        category: key of the rule.
        prompt: the user message.
    """

    number: int
    question_id: Any
    answer1_id: Any
    answer2_id: Any
    category: str
    prompt: str


def read_rules(path: str | None) -> dict[str, dict[str, str]]:
    """Read category -> `{"role", "prompt"}`; None is the file of this package.

    Raises:
        RequestError: the file does not hold rules.
    """
    path = path or RULE_FILE
    rules = read_json(path)
    if not isinstance(rules, dict):
        raise RequestError(f"{path}: not a file of rules; it must be an object of {{category: {{role, prompt}}}}")
    for key, rule in rules.items():
        if not isinstance(rule, dict):
            raise RequestError(f"{path}, {key}: not a rule; it must be an object with role and prompt")
        require_fields(rule, f"{path}, {key}", {"role": str, "prompt": str})
    return rules


def read_contexts(path: str, kind: ImageContext) -> dict[str, str]:
    """Read the description of each image, by file name.

    Raises:
        RequestError: a line has another format; names it.
    """
    contexts = {}
    for row in read_json_lines(path, {"image": str, **kind.fields}):
        try:
            contexts[row["image"]] = kind.describe(row)
        except (KeyError, TypeError) as error:
            raise RequestError(
                f"{path}, image {row['image']!r}: a caption that is no text, or an object without category and bbox"
            ) from error
    return contexts


def comparison_prompt(rule: Record, question: str, answers: tuple[str, str], context: str | None = None) -> str:
    """Return the judge's user message; without a context, that part is left out."""
    role = rule["role"]
    parts = [] if context is None else [f"[Context]\n{context}"]
    parts.append(f"[Question]\n{question}")
    for number, answer in enumerate(answers, start=1):
        parts += [f"[{role} {number}]\n{answer}", f"[End of {role} {number}]"]
    parts.append(f"[System]\n{rule['prompt']}")
    return "".join(f"{part}\n\n" for part in parts)


def compare_answers(
    questions: Sequence[Record],
    references: Sequence[Record],
    candidates: Sequence[Record],
    rules: Mapping[str, Record],
    category_of: Callable[[Record], str],
    contexts: Mapping[str, str] | None = None,
) -> list[Comparison]:
    """Combine the lines of the three files.

    Args:
        category_of: question -> key of its rule.
        contexts: image -> description; None for questions without images.

    Raises:
        RequestError: the files do not belong together, or an image has no context.
        IncompleteError: a category has no rule.
    """
    for name, answers in (("reference answers", references), ("answers", candidates)):
        if len(answers) != len(questions):
            raise RequestError(f"{len(questions)} questions, but {len(answers)} {name}: one line for each is needed")
    comparisons = []
    for number, (question, reference, candidate) in enumerate(zip(questions, references, candidates), start=1):
        question_id = question["question_id"]
        for name, answer in (("reference answer", reference), ("answer", candidate)):
            if str(answer.get("question_id", question_id)) != str(question_id):
                raise RequestError(
                    f"line {number}: the question is {question_id!r}, but the {name} is to {answer['question_id']!r}; "
                    "the files must hold the same questions in the same order"
                )
        category = category_of(question)
        if category not in rules:
            raise IncompleteError(f"question {question_id}: there is no rule {category!r}; known: {', '.join(rules)}")
        context = None
        if contexts is not None:
            if question.get("image") not in contexts:
                raise RequestError(f"question {question_id}: the context file has no image {question.get('image')!r}")
            context = contexts[question["image"]]
        texts = (reference["text"], candidate["text"])
        prompt = comparison_prompt(rules[category], question["text"], texts, context)
        comparisons.append(
            Comparison(number, question_id, _answer_id(reference), _answer_id(candidate), category, prompt)
        )
    return comparisons


def _answer_id(answer: Record) -> Any:
    return answer.get("answer_id", answer.get("question_id"))


def parse_scores(review: str) -> list[float]:
    """Return the two scores in a review's first line, separated by spaces or commas; `[-1, -1]` without two."""
    first = review.strip().split("\n")[0].replace(",", " ").split()
    try:
        scores = [float(part) for part in first]
    except ValueError:
        return list(UNPARSED)
    readable = len(scores) == 2 and all(math.isfinite(score) and score >= 0 for score in scores)
    return scores if readable else list(UNPARSED)


def review_record(comparison: Comparison, review: str) -> dict[str, Any]:
    """Return one line of a reviews file."""
    return {
        "id": comparison.number,
        "question_id": comparison.question_id,
        "answer1_id": comparison.answer1_id,
        "answer2_id": comparison.answer2_id,
        "category": comparison.category,
        "content": review,
        "tuple": parse_scores(review),
    }


def review_all(
    comparisons: Sequence[Comparison], judge: Judge, output: str, parallel: int = 1, append: bool = False
) -> None:
    """Ask the judge and write one line per comparison.

    Args:
        output: the reviews file; every line is flushed at once.
        parallel: number of concurrent requests; lines keep the order of the questions.
        append: continue after the lines of an earlier run, one per leading question; otherwise overwrite the file.

    Raises:
        RequestError: the judge fails, see `Judge.ask` (lines written so far are kept); or, with `append`, the file
            holds reviews of other answers.
    """
    with open_records(output, append) as (done, write):
        left = comparisons[done:]
        if done:
            _check_earlier(read_json_lines(output), comparisons, output)
            logger.warning("%s has %d reviews; %d questions are left.", output, done, len(left))
        unparsed = 0
        for comparison, review in zip(left, map_in_order(lambda c: judge.ask(SYSTEM, c.prompt), left, parallel)):
            record = review_record(comparison, review)
            unparsed += record["tuple"] == UNPARSED
            write(record)
    if unparsed:
        logger.warning("%d of %d reviews have no two scores in their first line.", unparsed, len(left))


def _check_earlier(reviews: Sequence[Record], comparisons: Sequence[Comparison], path: str) -> None:
    """Refuse reviews of other answers, which an earlier run may have written under the same name."""
    for review, comparison in zip(reviews, comparisons):
        for field, value in (("question_id", comparison.question_id), ("answer2_id", comparison.answer2_id)):
            if review.get(field, value) != value:
                raise RequestError(
                    f"{path}, line {comparison.number}: a review of another answer ({field} {review[field]!r}, not "
                    f"{value!r}); delete the file or name another --output"
                )


def review_text_answers(files: ReviewFiles, judge: Judge, parallel: int) -> None:
    """Review answers to questions without images. The reviews file is overwritten, as by upstream.

    Raises:
        RequestError: the files do not belong together, or the judge fails.
        IncompleteError: the rules lack `default`, and a category is not one of them.
    """
    rules = read_rules(files.rule)

    def category_of(question: Record) -> str:
        category = str(question.get("category"))
        return category if category in rules else "default"

    questions = read_json_lines(files.question, {"question_id": str | int, "text": str})
    comparisons = compare_answers(questions, *_read_answers(files), rules, category_of)
    review_all(comparisons, judge, files.output, parallel)


def review_image_answers(files: ReviewFiles, context: str, kind: ImageContext, judge: Judge, parallel: int) -> None:
    """Review answers to questions about images. A reviews file of an earlier run is continued.

    Args:
        context: the context file, JSON lines.

    Raises:
        RequestError: the files do not belong together, or the judge fails.
        IncompleteError: a category has no rule.
    """
    questions = read_json_lines(files.question, {"question_id": str | int, "text": str, "category": str, "image": str})
    comparisons = compare_answers(
        questions,
        *_read_answers(files),
        read_rules(files.rule),
        lambda question: kind.rule_prefix + question["category"],
        read_contexts(context, kind),
    )
    review_all(comparisons, judge, files.output, parallel, append=True)


def _read_answers(files: ReviewFiles) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return read_json_lines(files.reference, {"text": str}), read_json_lines(files.candidate, {"text": str})
