"""Mean scores of reviews: ours in percent of the reference's, and both (contract: eval.md 4.6)."""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.scoring.json_files import read_json_lines
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import RequestError, run_program

Record = Mapping[str, Any]

_NAMES = ("gpt4_text", "reviews_", "review_")


@dataclass(frozen=True)
class MeanScores:
    """Means over the reviews of one category, rounded to three decimals as upstream does before dividing."""

    reference: float
    ours: float

    @property
    def relative(self) -> float:
        """Ours in percent of the reference's; 0 where that is 0."""
        return 100 * self.ours / self.reference if self.reference else 0.0

    def line(self, category: str) -> str:
        return f"{category} {self.relative:.1f} {10 * self.reference:.1f} {10 * self.ours:.1f}"


def scores_of(review: Record) -> list[float] | None:
    """`[reference, ours]`; None for a review without readable scores (E-11)."""
    scores = review["tuple"] if "tuple" in review else review["score"]
    return None if min(scores) < 0 else scores


def summarize(reviews: Iterable[Record]) -> dict[str, MeanScores]:
    """By category in alphabetical order; `all` is every readable review, also those without a category."""
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
    """The reviews in a folder: by their names, or all where the folder's name contains `review`."""
    folder = os.path.expanduser(folder)
    names = [name for name in sorted(os.listdir(folder)) if name.endswith(".jsonl")]
    return [os.path.join(folder, name) for name in names if name.startswith(_NAMES) or "review" in folder]


def chosen_files(files: Iterable[str], select: Collection[str], version: str | None) -> list[str]:
    """Files whose name has all of `select`, and whose judge is of that version."""
    names = {path: os.path.basename(path) for path in files}
    return [
        path
        for path, name in names.items()
        if all(part in name for part in select) and version in (None, "0613" if "0613" in name else "0314")
    ]


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: no files, or --score-file with several.
    """
    if not args.files and not args.dir:
        raise RequestError("say which reviews: --files, or --dir with a folder of them")
    files = chosen_files(args.files or review_files(args.dir), args.select or (), args.version)
    if not files:
        raise RequestError("no file of reviews is left by --dir, --select and --version")
    if args.score_file and len(files) > 1:
        raise RequestError(f"--score-file takes the reviews of one experiment, but there are {len(files)} files")
    ignored = set(map(str, args.ignore or ()))
    for path in files:
        reviews = [row for row in read_json_lines(path) if str(row.get("question_id")) not in ignored]
        _check(reviews, path)
        means = summarize(reviews)
        print(os.path.basename(path).replace("gpt4_text_", "").replace(".jsonl", ""))
        for category, mean in means.items():
            print(mean.line(category))
        print("=================================")
        unread = sum(scores_of(review) is None for review in reviews)
        if unread:
            print(f"{path}: {unread} of {len(reviews)} reviews have no scores and are left out.", file=sys.stderr)
        write_score(
            args.score_file,
            "LLaVA-Bench",
            experiment_name(path, args.experiment),
            "relative",
            [
                item(review.get("question_id", number), scores_of(review), review.get("category", "all"))
                for number, review in enumerate(reviews)
                if scores_of(review) is not None
            ],
            details={category: mean.relative for category, mean in means.items()},
            expected=len(reviews),
            answered=len(reviews) - unread,
        )


def _check(reviews: Sequence[Record], path: str) -> None:
    for number, review in enumerate(reviews, start=1):
        scores = review.get("tuple", review.get("score"))
        if not (isinstance(scores, list) and len(scores) == 2 and all(map(_is_score, scores))):
            raise RequestError(
                f"{path}, review {number}: no two scores under 'tuple' or 'score'; is it the right file?"
            )
        if not isinstance(review.get("category", ""), str):
            raise RequestError(f"{path}, review {number}: 'category' is not a text")


def _is_score(value: Any) -> bool:
    """A number, and one that means can be made of: not NaN, Infinity or one of hundreds of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dir", help="folder of reviews: gpt4_text*, reviews_*, review_*")
    parser.add_argument("-v", "--version", choices=("0314", "0613"), help="version of the judge, from the file's name")
    parser.add_argument("-s", "--select", nargs="*", help="only files whose name has all of these")
    parser.add_argument("-f", "--files", nargs="*", help="these files, instead of a folder")
    parser.add_argument("-i", "--ignore", nargs="*", help="ids of questions to leave out")
    add_score_arguments(parser)
    return parser


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
