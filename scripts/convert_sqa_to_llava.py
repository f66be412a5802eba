"""Convert ScienceQA's problems to the training format, or to JSON lines.

python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir DIR --split train --prompt-format QCM-LEA
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import argparse
from collections.abc import Iterator
from typing import Any

from convert_sqa_to_llava_base_prompt import build_prompt_chatbot

from llava.eval.scoring.json_files import read_json_object, require_fields, write_json, write_json_lines
from llava.program import RequestError, run_program


def convert_to_llava(base_dir: str, split: str, prompt_format: str = "QCM-LEA") -> None:
    """Write `llava_{split}_{format}.json`: conversations of two turns.

    Raises:
        RequestError: unusable input.
    """
    samples = []
    for problem_id, image, question, answer in _problems(base_dir, split, prompt_format):
        image_field = {} if image is None else {"image": f"{problem_id}/{image}"}
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        samples.append({"id": problem_id, **image_field, "conversations": turns})
    print(f"Number of samples: {len(samples)}")
    write_json(os.path.join(base_dir, f"llava_{split}_{prompt_format}.json"), samples, indent=2)


def convert_to_jsonl(base_dir: str, split: str, prompt_format: str = "QCM-LEPA") -> None:
    """Write `scienceqa_{split}_{format}.jsonl`: `id`, `image`, `instruction`, `output`.

    Raises:
        RequestError: unusable input.
    """
    rows: list[dict[str, Any]] = []
    for problem_id, image, question, answer in _problems(base_dir, split, prompt_format):
        image_field = {} if image is None else {"image": f"{problem_id}/{image}"}
        rows.append({"id": problem_id, **image_field, "instruction": question, "output": answer})
    write_json_lines(os.path.join(base_dir, f"scienceqa_{split}_{prompt_format}.jsonl"), rows)


def _problems(base_dir: str, split: str, prompt_format: str) -> Iterator[tuple[str, str | None, str, str]]:
    """Yield `(id, name of the image, human turn, model turn)` of each problem of a split."""
    splits_path = os.path.join(base_dir, "pid_splits.json")
    splits = read_json_object(splits_path)
    problems = read_json_object(os.path.join(base_dir, "problems.json"))
    if split not in splits:
        raise RequestError(f"{splits_path} has no split {split!r}; it has {', '.join(splits)}")
    require_fields(splits, splits_path, {split: list[str]})
    for problem_id, (question, answer) in build_prompt_chatbot(problems, splits[split], prompt_format).items():
        image = problems[problem_id].get("image")
        yield problem_id, image, question if image is None else f"{question}\n<image>", answer


COMMANDS = {"convert_to_llava": convert_to_llava, "convert_to_jsonl": convert_to_jsonl}
_DEFAULT_FORMATS = {"convert_to_llava": "QCM-LEA", "convert_to_jsonl": "QCM-LEPA"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{convert_to_llava,convert_to_jsonl}")
    for name, command in COMMANDS.items():
        flags = commands.add_parser(name, description=command.__doc__.split("\n")[0])
        # Upstream's command line, made with fire, accepts both spellings.
        flags.add_argument("--base-dir", "--base_dir", required=True, help="folder of pid_splits.json, problems.json")
        flags.add_argument("--split", required=True, help="key of pid_splits.json")
        flags.add_argument("--prompt-format", "--prompt_format", default=_DEFAULT_FORMATS[name], help="INPUT-OUTPUT")
    return parser


def main(args: argparse.Namespace) -> None:
    """Run one of COMMANDS.

    Raises:
        RequestError: unusable input.
    """
    COMMANDS[args.command](args.base_dir, args.split, args.prompt_format)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
