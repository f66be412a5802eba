"""Obtain the results that are missing, in processes of their own, and report the progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from .jobs import Finished, Job, Waiting, run_jobs, state, tail
from .protocol import Evaluation, Folders, Protocol, changed_settings, finished_result
from .runs import obtain_result

PRELOADED = ("llava.train.train", "llava.eval.model_vqa_loader", "deepspeed")


class Progress:
    """Report progress on standard output: jobs done, time elapsed and left, the last result."""

    def __init__(self, title: str, total: int, done: int, at_once: int) -> None:
        self.total, self.done, self.at_once = total, done, at_once
        self.seconds: list[float] = []
        self.started = time.monotonic()
        skipped = f", {done} of them done before" if done else ""
        self.say(f"{title}: {total}{skipped}, {at_once} at once")

    def say(self, text: str) -> None:
        sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
        sys.stdout.flush()

    def time_left(self) -> str:
        if not self.seconds:
            return "time left not known yet"
        mean = sum(self.seconds) / len(self.seconds)
        left = mean * (self.total - self.done) / self.at_once
        return f"about {left / 60:.0f} min left"

    def finished(self, job: Job, seconds: float, outcome: str) -> None:
        self.done += 1
        self.seconds.append(seconds)
        elapsed = (time.monotonic() - self.started) / 60
        self.say(f"{self.done}/{self.total} {job.name}: {outcome} ({seconds:.0f} s); {elapsed:.1f} min elapsed, "
                 f"{self.time_left()}")  # fmt: skip


def obtain_all(title: str, plan: Sequence[Evaluation], protocol: Protocol, folders: Folders, at_once: int) -> list[str]:
    """Obtain the missing results. -> names of those that failed."""
    missing = [e for e in plan if finished_result(e, protocol, folders) is None]
    progress = Progress(title, len(plan), len(plan) - len(missing), at_once)
    for evaluation in missing:
        if changes := changed_settings(evaluation, protocol, folders):
            progress.say(f"{evaluation.name} was made with other settings and is made again: {', '.join(changes)}")
    by_job = {
        Job(e.name, obtain_result, (e, protocol, folders), folders.runs / "logs" / f"{e.name}.log"): e for e in missing
    }
    if by_job:
        progress.say(f"log files: {folders.runs / 'logs'}")
    failed = []
    for event in run_jobs(list(by_job), at_once, PRELOADED):
        if isinstance(event, Waiting):
            progress.say("running: " + "; ".join(f"{job.name} {state(job.log)}" for job in event.jobs))
        elif isinstance(event, Finished):
            result = finished_result(by_job[event.job], protocol, folders)
            if event.exit_code == 0 and result is not None:
                progress.finished(event.job, event.seconds, f"{result['mean']:.1f} % right")
                continue
            failed.append(event.job.name)
            progress.finished(event.job, event.seconds, f"FAILED (exit status {event.exit_code})")
            progress.say(f"the end of {event.job.log}:\n{tail(event.job.log)}")
    return failed
