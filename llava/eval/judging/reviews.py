"""Two answers to one question, compared by a judge (contract: eval.md 4.6): prompts, scores, files.

`eval_gpt_review`, `eval_gpt_review_bench` and `eval_gpt_review_visual` are its command lines.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llava.eval.judging.judge import Judge, map_in_order
from llava.eval.scoring.answers import IncompleteError
from llava.eval.scoring.json_files import parse_object, read_json, read_json_lines, require_fields
from llava.program import RequestError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

RULE_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "table", "rule.json")
SYSTEM = "You are an impartial judge of the quality of answers."
UNPARSED = [-1, -1]

# Of a question about a picture.
QUESTION_FIELDS = {"question_id": str | int, "text": str, "category": str, "image": str}


@dataclass(frozen=True)
class Comparison:
    """One question with its two answers, ready for the judge.

    Attributes:
        number: of the question, from 1.
        category: key of the rule.
        prompt: the whole user message.
    """

    number: int
    question_id: Any
    answer1_id: Any
    answer2_id: Any
    category: str
    prompt: str


def read_rules(path: str | None) -> dict[str, dict[str, str]]:
    """Rule key -> `{"role", "prompt"}`; None is the file of this package.

    Raises:
        RequestError: the file is none of rules.
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


def read_contexts(path: str, describe: Callable[[Record], str], required: Mapping[str, Any]) -> dict[str, str]:
    """What stands for each picture, by the picture's name.

    Raises:
        RequestError: a line is not of this form; names it.
    """
    contexts = {}
    for row in read_json_lines(path, {"image": str, **required}):
        try:
            contexts[row["image"]] = describe(row)
        except (KeyError, TypeError) as error:
            raise RequestError(
                f"{path}, picture {row['image']!r}: a caption that is no text, or an object without category and bbox"
            ) from error
    return contexts


def comparison_prompt(rule: Record, question: str, answers: tuple[str, str], context: str | None = None) -> str:
    """The judge's user message; without a context that part is left out."""
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
    """Put the lines of the three files side by side.

    Raises:
        RequestError: the files do not belong together, or a picture has no context.
        IncompleteError (an AssertionError): a category has no rule.
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
                raise RequestError(f"question {question_id}: the context file has no picture {question.get('image')!r}")
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
    """The two scores in a review's first line, apart by spaces or commas; `[-1, -1]` where they cannot be read."""
    first = review.strip().split("\n")[0].replace(",", " ").split()
    try:
        scores = [float(part) for part in first]
    except ValueError:
        return list(UNPARSED)
    readable = len(scores) == 2 and all(math.isfinite(score) and score >= 0 for score in scores)
    return scores if readable else list(UNPARSED)


def review_record(comparison: Comparison, review: str) -> dict[str, Any]:
    """One line of a reviews file."""
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
    """Ask the judge and write one line for each comparison.

    Args:
        output: the reviews file; every line reaches it at once.
        parallel: requests at once; the lines keep the order of the questions.
        append: go on after the lines that are there, one for each leading question; else begin anew.

    Raises:
        RequestError: see `Judge.ask`; the lines written so far are kept. Or, with `append`, these are not reviews of
            the same answers.
    """
    with reviews_writer(output, append) as (done, write):
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
    """Reviews of other answers, under the same name, must not pass for those of these."""
    for review, comparison in zip(reviews, comparisons):
        for field, value in (("question_id", comparison.question_id), ("answer2_id", comparison.answer2_id)):
            if review.get(field, value) != value:
                raise RequestError(
                    f"{path}, line {comparison.number}: a review of another answer ({field} {review[field]!r}, not "
                    f"{value!r}); delete the file or name another --output"
                )


@contextmanager
def reviews_writer(path: str, append: bool) -> Iterator[tuple[int, Callable[[Record], None]]]:
    """Opens a reviews file, folder included; gives the number of lines it keeps and a function that adds one."""
    path = os.path.abspath(os.path.expanduser(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    done = _mend_last_line(path) if append and os.path.exists(path) else 0
    with open(path, "a" if append else "w", encoding="utf-8") as file:

        def write(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        yield done, write


def _mend_last_line(path: str) -> int:
    """Cut off the part of a line that a killed run has left, or end a whole one; gives the number of lines."""
    with open(path, "rb+") as file:
        lines = file.read().split(b"\n")
        last = lines.pop()
        if _is_whole(last):
            lines.append(last)
            file.write(b"\n")
        else:
            file.seek(-len(last), os.SEEK_END)
            file.truncate()
    for number, line in enumerate(lines, start=1):
        parse_object(line.decode("utf-8", "replace"), f"{path}, line {number}")
    return len(lines)


def _is_whole(line: bytes) -> bool:
    try:
        parse_object(line.decode("utf-8", "replace"), "")
    except RequestError:
        return False
    return True
