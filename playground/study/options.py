"""The flags that the programs of the study share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .protocol import Folders, Protocol

PROTOCOL_FLAGS = {
    "tokens": "asked of every connector that can choose",
    "stage1_steps": None,
    "stage2_steps": None,
    "pictures": "for training",
    "questions": "held out, of each kind",
}


def add_options(parser: argparse.ArgumentParser, runs: str, seeds: list[int]) -> None:
    """Add the seeds, the protocol, the folders and the number of processes; `runs` and `seeds` are defaults."""
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    for name, text in PROTOCOL_FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(Protocol, name), help=text)
    parser.add_argument("--data", type=Path, default=Path("playground/data/connectors"))
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once, one thread each")


def protocol_of(args: argparse.Namespace) -> Protocol:
    return Protocol(**{name: getattr(args, name) for name in PROTOCOL_FLAGS})


def folders_of(args: argparse.Namespace) -> Folders:
    return Folders(args.data.resolve(), args.runs.resolve())
