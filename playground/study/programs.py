"""What the study's programs do alike: end with a status and one line, and make a page from raw results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .protocol import Folders


def run_study(work: Callable[[], list[str]], report: Path, folders: Folders) -> int:
    """Do the work, which gives the names of what failed. -> exit status: 0, 1 if something failed, 130 after ctrl-C."""
    try:
        failed = work()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command resumes from the last finished stage\n")
        return 130
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if failed:
        sys.stderr.write(f"error: {len(failed)} failed: {', '.join(failed)}; the logs are in {folders.runs / 'logs'}\n")
    sys.stdout.write(f"report: {report}\n")
    return 1 if failed else 0


def read_raw_results(path: Path, maker: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: there are no raw results; names the command that makes them.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; {maker} makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def run_report(
    program: str,
    description: str,
    raw_results: str,
    page: str,
    write_report: Callable[[Path], None],
    argv: Sequence[str] | None,
) -> int:
    """The command line of a report. -> exit status.

    Args:
        program: name of the module.
        raw_results, page: names of the file that is read and of the page that is written.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("docs/benchmarks"), help=f"where {raw_results} is")
    args = parser.parse_args(argv)
    try:
        write_report(args.folder)
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"wrote {args.folder / page}\n")
    return 0
