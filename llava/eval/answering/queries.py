"""A query: one message to a model, about at most one image."""

from dataclasses import dataclass
from typing import Any

# Upstream's request for a letter, which ends multiple-choice questions.
LETTER_PROMPT = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        fields: fields of the answer's line that are known before the reply.
        message: text of the user's turn, without an image marker.
        image: path of the image; None for a question without one.
        image_base64: the image file in base64, instead of a path.
    """

    fields: dict[str, Any]
    message: str
    image: str | None = None
    image_base64: str | None = None

    @property
    def num_images(self) -> int:
        return int(self.image is not None or self.image_base64 is not None)
