"""GQA's predictions (contract: eval.md 3)."""

from collections.abc import Sequence

from llava.eval.answers import Answer


def as_predictions(answers: Sequence[Answer]) -> list[dict[str, str]]:
    """Answers of the generator as GQA's scorer reads them: lower case, without periods at the end."""
    return [
        {"questionId": answer["question_id"], "prediction": answer["text"].rstrip(".").lower()} for answer in answers
    ]
