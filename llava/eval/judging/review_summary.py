"""Mean scores of reviews: ours in percent of the reference's."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.score_file import Score, item
from llava.program import RequestError

Record = Mapping[str, Any]

_NAMES = ("gpt4_text", "reviews_", "review_")


@dataclass(frozen=True)
class MeanScores:
    """Mean scores of one category, rounded to three decimals before they are divided, as by upstream."""

    reference: float
    ours: float

    @property
    def relative(self) -> float:
        """Our score in percent of the reference's; 0 if that is 0."""
        return 100 * self.ours / self.reference if self.reference else 0.0

    def line(self, category: str) -> str:
        """Return the line that upstream prints for the category."""
        return f"{category} {self.relative:.1f} {10 * self.reference:.1f} {10 * self.ours:.1f}"


def scores_of(review: Record) -> list[float] | None:
    """Return `[reference, ours]`; None for a review without readable scores, which upstream averages as -1."""
    scores = review["tuple"] if "tuple" in review else review["score"]
    return None if min(scores) < 0 else scores


def summarize(reviews: Iterable[Record]) -> dict[str, MeanScores]:
    """Return category -> means, in alphabetical order; `all` includes reviews without a category."""
    pairs: dict[str, list[list[float]]] = {}
    for review in reviews:
        scores = scores_of(review)
        if scores is not None:
            pairs.setdefault("all", []).append(scores)
            if "category" in review:
                pairs.setdefault(review["category"], []).append(scores)
    return {category: _means(pairs[category]) for category in sorted(pairs)}


def _means(pairs: Sequence[Sequence[float]]) -> MeanScores:
    reference, ours = (round(sum(column) / len(pairs), 3) for column in zip(*pairs))
    return MeanScores(reference, ours)


def review_files(folder: str) -> list[str]:
    """Return the reviews in a folder: known file names, or all if the folder's name contains `review`."""
    folder = os.path.expanduser(folder)
    names = [name for name in sorted(os.listdir(folder)) if name.endswith(".jsonl")]
    return [os.path.join(folder, name) for name in names if name.startswith(_NAMES) or "review" in folder]


def chosen_files(files: Iterable[str], select: Collection[str], version: str | None) -> list[str]:
    """Return the files whose name contains all of `select` and belongs to that version of the judge."""
    names = {path: os.path.basename(path) for path in files}
    return [
        path
        for path, name in names.items()
        if all(part in name for part in select) and version in (None, "0613" if "0613" in name else "0314")
    ]


def check_reviews(reviews: Sequence[Record], path: str) -> None:
    """Check the records of a reviews file.

    Raises:
        RequestError: a record has no two scores; names it.
    """
    for number, review in enumerate(reviews, start=1):
        scores = review.get("tuple", review.get("score"))
        if not (isinstance(scores, list) and len(scores) == 2 and all(map(_is_score, scores))):
            raise RequestError(
                f"{path}, review {number}: no two scores under 'tuple' or 'score'; is it the right file?"
            )
        if not isinstance(review.get("category", ""), str):
            raise RequestError(f"{path}, review {number}: 'category' is not a text")


def _is_score(value: Any) -> bool:
    """Return True for a number that can be averaged: not NaN, infinite, or hundreds of digits long."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def score(reviews: Sequence[Record], path: str) -> Score:
    """Summarise the checked records of one reviews file; `path` names the file."""
    means = summarize(reviews)
    readable = [(number, review) for number, review in enumerate(reviews) if scores_of(review) is not None]
    unread = len(reviews) - len(readable)
    return Score(
        "LLaVA-Bench",
        path,
        "relative",
        [
            item(review.get("question_id", number), scores_of(review), review.get("category", "all"))
            for number, review in readable
        ],
        details={category: mean.relative for category, mean in means.items()},
        expected=len(reviews),
        answered=len(readable),
        lines=[
            os.path.basename(path).replace("gpt4_text_", "").replace(".jsonl", ""),
            *(mean.line(category) for category, mean in means.items()),
            "=================================",
        ],
        notes=[f"{path}: {unread} of {len(reviews)} reviews have no scores and are left out"] if unread else [],
    )
