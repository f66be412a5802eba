"""The flags that the answer generators share (contract: eval.md 1)."""

import argparse

from llava.inference import add_connector_arguments


def add_generator_arguments(
    parser: argparse.ArgumentParser, question_file: str = "tables/question.jsonl", conv_mode: str = "llava_v1"
) -> None:
    """The flags that all `model_vqa*` have, upstream's and ours."""
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-folder", type=str, default="")
    parser.add_argument("--question-file", type=str, default=question_file)
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    parser.add_argument("--conv-mode", type=str, default=conv_mode)
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy decoding")
    add_run_arguments(parser)


def add_decoding_arguments(parser: argparse.ArgumentParser, max_new_tokens: int | None = None) -> None:
    """Upstream's flags with underscores; the last only with a default for it."""
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    if max_new_tokens is not None:
        parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Beyond upstream: how a file of questions is worked through. Without them everything is as upstream does it."""
    parser.add_argument("--batch-size", type=int, default=1, help="questions answered at a time")
    parser.add_argument("--resume", action="store_true", help="keep the answers that the file holds, add the others")
    parser.add_argument("--limit", type=int, default=None, help="ask only so many questions, the first of the file")
    parser.add_argument(
        "--record-run", action="store_true", help="model, decoding and seconds in the metadata of each answer"
    )
    add_connector_arguments(parser)
