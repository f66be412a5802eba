"""ScienceQA accuracy when GPT-4 is asked again with our answer before it (contract: eval.md 4.2).

Where the second reply gives no answer, or there is none, ours counts. Replies are read as in `eval_science_qa_gpt4`.
"""

import os
import sys

if not __package__:  # run by path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse

from llava.eval.eval_science_qa_gpt4 import build_parser as build_gpt4_parser
from llava.eval.eval_science_qa_gpt4 import read_both, share_line
from llava.eval.scoring.answers import ANSWER_FIELDS, match_answers, note
from llava.eval.scoring.json_files import read_json_lines, write_json
from llava.eval.scoring.science_qa import FAILED, choice_index, option_letters, parse_sentence, result_record
from llava.program import run_program


def build_parser() -> argparse.ArgumentParser:
    parser = build_gpt4_parser()
    parser.description = __doc__
    parser.add_argument("--requery-result", type=str, required=True, help="answers to the second query, JSON lines")
    parser.add_argument("--output-result", type=str, required=True, help="accuracy, choices and replies, JSON")
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        RequestError: input that cannot be used.
    """
    problems, ours, verdicts = read_both(args)
    options = option_letters(args.options)
    answers = read_json_lines(args.requery_result, ANSWER_FIELDS)
    requeried, coverage = match_answers([verdict.problem_id for verdict in verdicts], answers, args.requery_result)
    for line in coverage.warnings("count as ours"):
        note(line)

    chosen: dict[str, int] = {}
    outputs: dict[str, str] = {}
    for verdict in verdicts:
        name = verdict.problem_id
        reply = requeried[name]["text"] if name in requeried else FAILED
        letter = parse_sentence(reply)
        failed = letter == FAILED
        outputs[name] = ours[name] if failed else reply
        chosen[name] = verdict.ours if failed else choice_index(letter, len(problems[name]["choices"]), options)

    total = len(verdicts)
    correct = sum(chosen[verdict.problem_id] == verdict.truth for verdict in verdicts)
    right = {
        "ours": sum(verdict.ours == verdict.truth for verdict in verdicts),
        "GPT-4": sum(verdict.gpt4 == verdict.truth for verdict in verdicts),
        "GPT-4, ours where it gives none": sum(verdict.combined == verdict.truth for verdict in verdicts),
        "requery": correct,
        "upper bound": sum(
            verdict.truth in (verdict.ours, verdict.gpt4, chosen[verdict.problem_id]) for verdict in verdicts
        ),
    }
    lines = [
        f"Total: {total}, Correct ({name}): {count}, Accuracy: {100 * count / total:.2f}%"
        for name, count in right.items()
    ]
    lines.insert(2, share_line("GPT-4 without answer", sum(verdict.gpt4_failed for verdict in verdicts), total))
    print("\n".join(lines))
    write_json(args.output_result, result_record(100 * correct / total, correct, chosen, outputs), indent=2)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
