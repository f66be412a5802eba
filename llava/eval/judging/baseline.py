"""A text-only baseline: answers of a language model behind an OpenAI-compatible server."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.answering.answers_file import short_uuid
from llava.eval.judging.judge import Judge, JudgeUnreachableError, QuestionRefusedError, map_in_order

logger = logging.getLogger(__name__)

SYSTEM = "You are a helpful assistant."
MODEL_ID = "gpt-3.5-turbo:20230327"
FAILED = "#ERROR#"


def answer(question: Mapping[str, Any], judge: Judge) -> dict[str, Any]:
    """Return one line of the answers file; its text is FAILED if the server refuses this question or does not reply.

    Raises:
        RequestError: the server would refuse all other questions too.
    """
    try:
        text = judge.ask(SYSTEM, question["text"])
    except (JudgeUnreachableError, QuestionRefusedError) as error:
        logger.warning("question %s: %s", question["question_id"], error)
        text = FAILED
    return {
        "answer_id": short_uuid(),
        "question_id": question["question_id"],
        "model_id": MODEL_ID,
        "text": text,
    }


def answer_all(questions: Sequence[Mapping[str, Any]], judge: Judge, parallel: int) -> list[dict[str, Any]]:
    """Return the answers sorted by `question_id`, numbers before texts."""
    answers = list(map_in_order(lambda question: answer(question, judge), questions, parallel))
    return sorted(answers, key=lambda record: (isinstance(record["question_id"], str), record["question_id"]))
