"""The flags of the programs that ask a judge."""

import argparse

from llava.eval.judging.judge import JudgeOptions
from llava.eval.judging.reviews import ReviewFiles


def add_judge_arguments(parser: argparse.ArgumentParser, model: str, parallel: int) -> None:
    """Add upstream's --max-tokens, and the flags --judge-* that upstream does not have."""
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest reply of the judge")
    parser.add_argument("--judge-model", default=model, help="name of the model at the server (default: %(default)s)")
    parser.add_argument("--judge-base-url", help="an OpenAI-compatible server, including /v1 (default: OpenAI's)")
    parser.add_argument("--judge-retries", type=int, default=5, help="further tries if the server is busy or broken")
    parser.add_argument("--judge-parallel", type=int, default=parallel, help="requests at once (default: %(default)s)")


def judge_options(args: argparse.Namespace, temperature: float = 0.2, pause: float = 0.5) -> JudgeOptions:
    """Return the options that the flags of `add_judge_arguments` describe."""
    return JudgeOptions(
        model=args.judge_model,
        base_url=args.judge_base_url,
        temperature=temperature,
        max_tokens=args.max_tokens,
        retries=max(0, args.judge_retries),
        pause=pause,
    )


def add_review_arguments(parser: argparse.ArgumentParser, question_fields: str, images: bool = False) -> None:
    """Add the flags of `review_files`; for questions about images, also --context."""
    parser.add_argument("-q", "--question", required=True, help=f"JSON lines: {question_fields}")
    if images:
        parser.add_argument("-c", "--context", required=True, help="JSON lines: image, and its description")
    parser.add_argument("-a", "--answer-list", nargs=2, required=True, metavar=("REFERENCE", "OURS"))
    parser.add_argument("-r", "--rule", help="prompts by category (default: those of this package)")
    parser.add_argument("-o", "--output", required=True, help="reviews, one line each")


def review_files(args: argparse.Namespace) -> ReviewFiles:
    """Return the files that the flags of `add_review_arguments` name."""
    reference, candidate = args.answer_list
    return ReviewFiles(args.question, reference, candidate, args.rule, args.output)
