"""Will a training run fit, and how long will it take? Computed from its script, without a GPU.

    python -m llava.tools.fit scripts/v1_5/finetune_acformer.sh --gpus 8 --gpu-memory 80
    python -m llava.tools.fit scripts/v1_5/pretrain_vlora.sh --gpu a100 -- --per_device_train_batch_size 48
    SIZE=13b TOKENS=257 python -m llava.tools.fit scripts/v1_5/finetune_acformer.sh --ignore-missing --json

The script is run with launchers that record their arguments and start nothing, so its variables are resolved as in a
real start; flags after `--` are handed on to it. The model is built on the meta device: no weights are read, and the
models that the scripts name need no download.

Printed are the bytes of each part, the sum at each moment of a step, the arithmetic, and the hours. A run that would
fail, or that does not fit, is refused with status 1 and one line for each reason.
"""

import argparse
import json
import sys

from llava.program import run_program
from llava.tools.machine import PEAK_TFLOPS


def parse_arguments(args: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module's docstring."""
    args = sys.argv[1:] if args is None else args
    own, script_flags = args, []
    if "--" in args:
        own, script_flags = args[: args.index("--")], args[args.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", nargs="?", help="a training script; flags after -- are handed on to it")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of all nodes together")
    parser.add_argument("--gpu-memory", type=float, default=80, help="of one GPU, GiB")
    parser.add_argument("--reserve", type=float, default=2, help="of it for CUDA, NCCL and gaps, GiB")
    gpus = {name.lower().replace(" ", "-"): tflops for name, tflops in PEAK_TFLOPS.items()}
    parser.add_argument("--gpu", choices=sorted(gpus), default="h100", help="its data sheet's bf16 TFLOP/s count")
    parser.add_argument("--peak-tflops", type=float, help="instead of the data sheet's")
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak that is reached, recomputation and padding counted"
    )
    parser.add_argument("--median-text-tokens", type=float, help="of a sample; 32 in stage 1, else 180")
    parser.add_argument("--text-spread", type=float, help="sigma of the log-normal lengths; 0.35 in stage 1, else 0.8")
    parser.add_argument("--records", type=int, help="samples of the data; counted, or known by the file's name")
    parser.add_argument("--ignore-missing", action="store_true", help="missing files are warnings")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/fit.md instead; no script")
    parsed = parser.parse_args(own)
    if parsed.table == (parsed.script is not None):
        parser.error("give either a script or --table")
    if parsed.gpus < 1 or not 0 < parsed.mfu <= 1:
        parser.error("--gpus must be 1 or more, --mfu above 0 and at most 1")
    parsed.peak_tflops = parsed.peak_tflops or gpus[parsed.gpu]
    parsed.script_flags = script_flags
    return parsed


def main() -> None:
    """Print the plan of a script, and refuse what would fail."""
    args = parse_arguments()
    from llava.tools.fitting.plan import Assumptions, read_zero
    from llava.tools.fitting.table import markdown_tables

    assumptions = Assumptions(
        gpus=args.gpus,
        gpu_memory=args.gpu_memory,
        reserve=args.reserve,
        peak_tflops=args.peak_tflops,
        mfu=args.mfu,
        median_text=args.median_text_tokens,
        text_spread=args.text_spread,
        records=args.records,
    )
    if args.table:
        print(markdown_tables(assumptions))
        return

    from llava.tools.fitting.checks import Problem, find_problems
    from llava.tools.fitting.plan import plan_script
    from llava.tools.fitting.report import figures, report

    launch, plan = plan_script(args.script, args.script_flags, assumptions)
    problems = find_problems(launch, plan.flags, read_zero(plan.flags), plan.meta, args.gpus)
    if not plan.fits:
        remedy = plan.remedy()
        advice = f"try {remedy}" if remedy else "use more or larger GPUs, or scripts/zero3_offload.json"
        problems.append(Problem(f"{plan.needed / 2**30:.1f} GiB are needed of {args.gpu_memory:g}: {advice}"))
    refused = [problem for problem in problems if not (problem.is_missing and args.ignore_missing)]
    if args.json:
        numbers = figures(plan) | {"refused": [p.message for p in refused]}
        numbers["warnings"] = [p.message for p in problems if p not in refused]
        print(json.dumps(numbers, indent=2))
    else:
        print(report(plan))
    for problem in problems:
        print(f"{'refused' if problem in refused else 'warning'}: {problem.message}", file=sys.stderr)
    if refused:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
