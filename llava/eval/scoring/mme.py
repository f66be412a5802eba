"""MME scores (perception, cognition, per task), by the rules of the benchmark's own tool.

Two yes-or-no questions per picture. For each task: accuracy over its questions, accuracy+ over its pictures (both
questions right), score = 100 * (accuracy + accuracy+). Perception and cognition are sums over 10 and 4 tasks. A reply
is lower-cased; it is `yes` or `no`, else its first four characters are looked through for yes, then for no, else it is
`other`, which is wrong. A question without an answer is wrong and told.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from llava.eval.scoring.answers import PROMPTED_FIELDS, match_answers, note
from llava.eval.scoring.json_files import read_json_lines
from llava.eval.scoring.mme_files import COGNITION, PERCEPTION, MmeQuestion, question_key, read_folder, write_results
from llava.eval.scoring.score_file import add_score_arguments, experiment_name, item, write_score
from llava.program import run_program


@dataclass(frozen=True)
class TaskScore:
    """Shares of right questions and of pictures with both questions right, 0 to 1."""

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        return 100 * (self.accuracy + self.accuracy_plus)


def parse_reply(text: str) -> str:
    """`yes`, `no` or `other`."""
    text = text.strip().lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def score_replies(questions: Sequence[MmeQuestion], replies: Sequence[str]) -> dict[str, TaskScore]:
    """Task -> its score, in the official order.

    Args:
        replies: one per question; the empty text where there is none.
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for question, reply in zip(questions, replies, strict=True):
        pictures = right.setdefault(question.task, {})
        pictures.setdefault(question.picture, []).append(parse_reply(reply) == question.answer.lower())
    return {task: _task_score(list(pictures.values())) for task, pictures in right.items()}


def _task_score(pictures: Sequence[Sequence[bool]]) -> TaskScore:
    answers = [answer for picture in pictures for answer in picture]
    return TaskScore(sum(answers) / len(answers), sum(map(all, pictures)) / len(pictures))


def total(scores: dict[str, TaskScore], tasks: Sequence[str]) -> float:
    """Sum over these tasks, as far as they are there."""
    return sum(scores[task].score for task in tasks if task in scores)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=str, required=True, help="MME_Benchmark_release_version")
    parser.add_argument("--result-file", type=str, required=True, help="answers of the generator, JSON lines")
    parser.add_argument("--results-dir", type=str, help="also write <task>.txt here, for the official tool")
    add_score_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    questions = read_folder(args.data_dir)
    answers = [
        row | {"key": "\t".join(question_key(str(row["question_id"]), row["prompt"]))}
        for row in read_json_lines(args.result_file, PROMPTED_FIELDS)
    ]
    keys = ["\t".join(question.key) for question in questions]
    by_key, coverage = match_answers(keys, answers, args.result_file, id_field="key")
    replies = [by_key[key]["text"] if key in by_key else "" for key in keys]
    scores = score_replies(questions, replies)
    right = [parse_reply(reply) == question.answer.lower() for question, reply in zip(questions, replies)]

    sums = {"perception": total(scores, PERCEPTION), "cognition": total(scores, COGNITION)}
    for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        print(f"=========== {name.capitalize()} ===========")
        print(f"total score: {sums[name]:.2f}")
        for task in tasks:
            if task in scores:
                entry = scores[task]
                shares = f"acc {100 * entry.accuracy:.2f}%, acc+ {100 * entry.accuracy_plus:.2f}%"
                print(f"\t{task} score: {entry.score:.2f} ({shares})")
    for line in coverage.warnings("count as wrong"):
        note(line)
    absent = [task for task in (*PERCEPTION, *COGNITION) if task not in scores]
    if absent:
        note(f"{args.data_dir} lacks {len(absent)} of 14 tasks, so these sums are not MME's: {', '.join(absent)}")
    if args.results_dir is not None:
        write_results(args.results_dir, questions, replies)
    write_score(
        args.score_file,
        "MME",
        experiment_name(args.result_file, args.experiment),
        "mme",
        [
            item(f"{question.task}/{question.picture}", int(value), question.task)
            for question, value in zip(questions, right, strict=True)
        ],
        details={
            **sums,
            "tasks": {task: entry.score for task, entry in scores.items()},
            "tasks_missing": absent,
            "other": sum(parse_reply(reply) == "other" for reply in replies),
        },
        expected=coverage.expected,
        answered=coverage.answered,
        answers=answers,
    )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
