"""Serving: our engine against one `generate` thread per request, and connectors against the MLP on all patches.

    python scripts/bench/serving.py --markdown docs/benchmarks/serving.md                  # CPU: 58 M parameters
    python scripts/bench/serving.py --geometry 7b --markdown docs/benchmarks/serving-7b.md # GPU of 40 GB and more

All requests of a burst arrive at once and stream to their end; prompts differ, replies have a fixed number of tokens.
Every burst runs in a process of its own, which also makes its peak memory its own; the two systems take turns, and
medians over the rounds are reported. Random weights. *Threads* is upstream's way without its limit of five at once:
for each request a thread with `generate`, and one that reads its `TextIteratorStreamer`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import serving_images
import torch
from common import add_common_flags, markdown_table, peak_bytes_above, precision, publish, run_again
from serving_load import GIB, endless, engine_settings, measure, serve_by_engine, serve_by_threads
from stage1_model import GEOMETRIES, build_model

from llava.serve.engine.engine import Engine
from llava.tokenization import load_tokenizer

TOKENIZER = Path(__file__).resolve().parents[2] / "playground/bases/tiny-llama"
SYSTEMS = ("threads", "engine")
TIMES = ("first_p50", "first_p95", "gap_p50", "gap_p95")


def measure_here(args: argparse.Namespace) -> dict[str, Any]:
    """One burst of one system, in this process."""
    geometry = GEOMETRIES[args.geometry]
    model = build_model(geometry, args.device, precision(args), "sdpa").eval()
    endless(model)
    tokenizer = load_tokenizer(str(TOKENIZER))
    count = args.concurrency[0]
    generator = torch.Generator().manual_seed(args.seed)
    shape = (count, args.prompt_tokens)
    prompts = torch.randint(3, geometry.llm.vocab_size, shape, generator=generator).tolist()
    if args.only == "engine":
        engine = Engine(model, tokenizer, None, engine_settings(count, int(args.cache_gb * GIB), args.prefill_chunk))
        serve = serve_by_engine(engine)
    else:
        serve = serve_by_threads(model, tokenizer)
    serve(prompts[:1], 4)
    figures: dict[str, Any] = {}
    peak = peak_bytes_above(args.device, lambda: figures.update(measure(serve, prompts, args.reply_tokens)))
    if args.only == "engine":
        engine.close()
    return figures | {"peak_bytes": peak}


def measure_bursts(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over the rounds, per number of requests and system."""
    runs: dict[tuple[int, str], list[dict[str, float]]] = {}
    for round_number in range(args.rounds):
        for count in args.concurrency:
            for system in SYSTEMS if round_number % 2 else reversed(SYSTEMS):
                figures = run_again("--only", system, "--concurrency", str(count))
                runs.setdefault((count, system), []).append(figures)
    return [
        {"requests": count, "system": system}
        | {name: statistics.median(run[name] for run in runs[count, system]) for name in runs[count, system][0]}
        for count in args.concurrency
        for system in SYSTEMS
    ]


def bursts_table(rows: list[dict[str, Any]]) -> str:
    """Both systems, and the ratio of their throughputs."""
    cells = []
    for threads, engine in zip(rows[::2], rows[1::2], strict=True):
        for row in (threads, engine):
            ratio = row["tokens_per_second"] / threads["tokens_per_second"]
            cells.append(
                [
                    f"{row['requests']}, {row['system']}",
                    f"{row['tokens_per_second']:,.0f}",
                    f"{ratio:.2f}x" if row is engine else "",
                    *(f"{1e3 * row[name]:,.0f}" for name in TIMES),
                    f"{row['peak_bytes'] / 2**20:,.0f}",
                ]
            )
    header = ["requests, system", "tokens/s", "ratio", "first token p50, ms", "p95", "between p50, ms", "p95", "MiB"]
    return markdown_table(header, cells)


def report(args: argparse.Namespace, figures: dict[str, Any]) -> str:
    """All tables, with a word on how to read them."""
    llm = GEOMETRIES[args.geometry].llm
    parts = [f"Language model of {llm.layers} layers and width {llm.hidden_size}."]
    if "bursts" in figures:
        parts += [
            f"## Throughput\n\n{args.prompt_tokens} prompt tokens, {args.reply_tokens} new ones, all requests at once. "
            "*First token*: from the request; *between*: two tokens of one reply; MiB: how far memory rises above the "
            "loaded model.",
            bursts_table(figures["bursts"]),
        ]
    if "pictures" in figures:
        budget = figures["pictures"][0]["budget"] / 2**20
        parts += [
            f"## Images\n\nOne image, {args.text_tokens} text tokens and {args.reply_tokens} new ones per request. "
            f"*That fit*: at once, in a budget of {budget:,.0f} MiB for keys, values and perceptual weights. *First "
            "token*: one request alone, an image never seen before, tower and connector included; median of "
            f"{args.rounds} rounds.",
            serving_images.table(figures["pictures"]),
        ]
    return "\n\n".join(parts)


def parse_arguments() -> argparse.Namespace:
    """The command line; what is not given depends on the device and on `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), help="7b on a GPU, serving elsewhere if not given")
    parser.add_argument("--concurrency", type=int, nargs="+", help="requests at once; 1 4 16 64 if not given")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--reply-tokens", type=int, default=48)
    parser.add_argument("--text-tokens", type=int, default=64, help="beside an image")
    parser.add_argument("--cache-gb", type=float, help="the engine's; 32 on a GPU, 4 elsewhere")
    parser.add_argument("--prefill-chunk", type=int, help="the engine's; 512 on a GPU, 128 elsewhere")
    parser.add_argument("--fitting", type=int, default=16, help="requests with the MLP that fit in the cache budget")
    parser.add_argument("--parts", nargs="+", choices=["bursts", "pictures"], default=["bursts", "pictures"])
    parser.add_argument("--only", choices=SYSTEMS, help="one burst, here; prints its figures as JSON")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.geometry = args.geometry or ("7b" if on_gpu else "serving")
    args.cache_gb = args.cache_gb or (32 if on_gpu else 4)
    args.prefill_chunk = args.prefill_chunk or (512 if on_gpu else 128)
    args.rounds = args.rounds or 3
    args.concurrency = args.concurrency or ([1, 3] if args.quick else [1, 4, 16, 64])
    if args.quick:
        args.geometry, args.rounds, args.reply_tokens = "toy", 1, 6
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    if args.only:
        print(json.dumps(measure_here(args)))
        return
    figures: dict[str, Any] = {}
    if "bursts" in args.parts:
        figures["bursts"] = measure_bursts(args)
    if "pictures" in args.parts:
        tokenizer = load_tokenizer(str(TOKENIZER))
        figures["pictures"] = serving_images.measure(args, GEOMETRIES[args.geometry], tokenizer)
    publish(args, f"Serving, {args.geometry} geometry", report(args, figures), figures)


if __name__ == "__main__":
    main()
