"""Runs jobs in processes of their own, a few at a time, each with its own log file.

The heavy modules are imported once, in multiprocessing's fork server; every job starts as a copy of it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Lock
from typing import Any


@dataclass(frozen=True)
class Job:
    """`function(*arguments)`, whose output goes to `log`. The function must be importable, as for pickling."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    log: Path


@dataclass(frozen=True)
class Finished:
    """A job has ended after `seconds`; `exit_code` is 0 on success and negative for a signal."""

    job: Job
    seconds: float
    exit_code: int


@dataclass(frozen=True)
class Waiting:
    """No job has ended for a while; these are running."""

    jobs: list[Job] = field(default_factory=list)


def run_jobs(
    jobs: Sequence[Job], at_once: int, preload: Sequence[str] = (), tick: float = 60.0
) -> Iterator[Finished | Waiting]:
    """Run all jobs and yield what happens. A job that fails does not stop the others.

    Args:
        at_once: number of processes.
        preload: modules to import once for all jobs.
        tick: seconds without an event after which `Waiting` is yielded.

    When the caller leaves the loop early, also by ctrl-C, the running jobs are stopped and the others never start.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    running: dict[str, BaseProcess] = {}
    lock, stopping = Lock(), Event()

    def run(job: Job) -> Finished:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        process = context.Process(target=_run_logged, args=(job.function, job.arguments, job.log))
        with lock:
            if stopping.is_set():
                raise CancelledError
            process.start()
            running[job.name] = process
        process.join()
        del running[job.name]
        return Finished(job, time.monotonic() - began, process.exitcode or 0)

    with ThreadPoolExecutor(at_once) as pool:
        pending: set[Future[Finished]] = {pool.submit(run, job) for job in jobs}
        try:
            while pending:
                ended, pending = wait(pending, timeout=tick, return_when=FIRST_COMPLETED)
                if not ended:
                    yield Waiting([job for job in jobs if job.name in running])
                yield from (future.result() for future in ended)
        finally:
            with lock:
                stopping.set()
                for process in list(running.values()):
                    process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)


def _run_logged(function: Callable[..., None], arguments: tuple[Any, ...], log: Path) -> None:
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
