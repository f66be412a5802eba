"""Runs jobs in processes of their own, a few at once, each with its own log file.

The heavy modules are imported once, in multiprocessing's fork server; every job starts as a copy of it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """`function(*arguments)`, whose output goes to `log`. The function must be importable, as for pickling."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    log: Path


@dataclass(frozen=True)
class Started:
    """A job has begun."""

    job: Job


@dataclass(frozen=True)
class Finished:
    """A job has ended, after `seconds`; `exit_code` is 0 if all went well, negative for a signal."""

    job: Job
    seconds: float
    exit_code: int


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a while; these jobs are running."""

    jobs: list[Job] = field(default_factory=list)


def run_jobs(
    jobs: Sequence[Job], at_once: int, preload: Sequence[str] = (), tick: float = 60.0
) -> Iterator[Started | Finished | Waiting]:
    """Run all jobs; what happens is yielded as it happens. A job that fails does not stop the others.

    Args:
        at_once: processes at a time.
        preload: modules to import once for all jobs.
        tick: seconds without an event after which `Waiting` comes.

    When the caller leaves the loop early, also by ctrl-C, the running jobs are stopped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = list(jobs)
    running: dict[BaseProcess, tuple[Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                job.log.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_run_logged, args=(job.function, job.arguments, str(job.log)))
                process.start()
                running[process] = (job, time.monotonic())
                yield Started(job)
            ended = wait([process.sentinel for process in running], timeout=tick)
            if not ended:
                yield Waiting([job for job, _ in running.values()])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                job, since = running.pop(process)
                yield Finished(job, time.monotonic() - since, process.exitcode or 0)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _run_logged(function: Callable[..., None], arguments: tuple[Any, ...], log: str) -> None:
    """In the job's process: everything written, also by libraries in other languages, goes to the log."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO)
    function(*arguments)


# ---- reading logs


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log. Of a progress bar, which redraws its line, only the last state counts."""
    text = _last_part(log)
    rows = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    return "\n".join(rows[-lines:])


def state(log: Path) -> str:
    """Where a job is: its last line that starts with `== `, and the last count `12/100` of a progress bar since."""
    text = _last_part(log)
    stages = re.findall(r"== ([^\r\n]+)", text)
    counts = re.findall(r"(\d+/\d+) \[", text.rsplit("== ", 1)[-1])
    return " ".join([*stages[-1:], *counts[-1:]]) or "starting"


def _last_part(log: Path, size: int = 100_000) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
