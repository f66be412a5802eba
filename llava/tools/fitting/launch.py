"""The training command that a shell script would start, found by running the script with launchers that only record."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llava.program import RequestError

LAUNCHERS = ("deepspeed", "torchrun", "accelerate", "srun", "mpirun", "python", "python3")
TRAINERS = ("train_mem.py", "train_xformers.py", "train.py")
RECIPES = "lib/train.sh"  # what the scripts of the connectors share; calls the training program
SECONDS = 60
# A file per call, named by the process; arguments end with NUL, so that any text in them survives.
RECORDER = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" > "$FIT_CALLS/$$"
"""


@dataclass(frozen=True)
class Launch:
    """A command line of training.

    Attributes:
        launcher: program that starts the processes.
        options: the launcher's own arguments, in front of the training program.
        flags: the training program's arguments.
    """

    launcher: str
    options: list[str]
    flags: list[str]

    def option(self, *names: str) -> str | None:
        """The value of a launcher's option, given as `--name value` or `--name=value`."""
        for place, argument in enumerate(self.options):
            name, separator, value = argument.partition("=")
            if name in names:
                return value if separator else (self.options[place + 1 : place + 2] or [None])[0]
        return None


def record_launch(script: str, flags: list[str]) -> Launch:
    """Run `bash script flags...` with recording launchers first in the PATH.

    The shell resolves the script's variables, so the caller's environment counts as in a real start. Everything
    else in the script is run as it is, so a script that does not look like a training script is not run at all.

    Raises:
        RequestError: there is no such script, it fails, or it starts no training or several.
    """
    if not os.path.isfile(script):
        raise RequestError(f"There is no script {script}; give one of scripts/v1_5/*.sh")
    text = Path(script).read_text(encoding="utf-8")
    if not any(name in text for name in (*TRAINERS, RECIPES)):
        raise RequestError(f"{script} was not run: it names none of {', '.join((*TRAINERS, RECIPES))}")
    with tempfile.TemporaryDirectory() as folder:
        programs, calls = Path(folder, "bin"), Path(folder, "calls")
        programs.mkdir()
        calls.mkdir()
        for name in LAUNCHERS:
            programs.joinpath(name).write_text(RECORDER, encoding="utf-8")
            programs.joinpath(name).chmod(0o755)
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "FIT_CALLS": str(calls)}
        try:
            done = subprocess.run(
                ["bash", script, *flags], env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"{script} did not reach its training command within {SECONDS} s") from error
        if done.returncode:
            raise RequestError(f"{script} ends with status {done.returncode}: {done.stderr.strip() or 'no message'}")
        recorded = [path.read_text(encoding="utf-8").split("\0")[:-1] for path in calls.iterdir()]
    launches = []
    for call in recorded:
        place = next((i for i, argument in enumerate(call) if os.path.basename(argument) in TRAINERS), None)
        if place is not None:
            launches.append(Launch(call[0], call[1:place], call[place + 1 :]))
    if not launches:
        raise RequestError(f"{script} starts no training: it never got to {' or '.join(TRAINERS)}")
    if len(launches) > 1:
        raise RequestError(f"{script} starts {len(launches)} trainings; give the script of one stage")
    return launches[0]
