"""Starts controller, worker and web server of the demo, waits for each, and stops all of them together.

Used by scripts/demo.sh; needs only the standard library. Everything listens on loopback.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
LOOK_EVERY = 0.2  # seconds
GRACE = 10.0  # seconds a process has to end by itself
LINES_SHOWN = 15  # of the log of a process that died

# Straight to loopback, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(Exception):
    """The demo cannot run; the message says why."""


@dataclass
class Service:
    """One process.

    Attributes:
        name: shown to users; its output goes to `<name>.out` with dashes for blanks.
        command: program and arguments.
        is_ready: whether it can be used; polled.
    """

    name: str
    command: list[str]
    is_ready: Callable[[], bool]


def choose_port(wanted: int | None, preferred: int, taken: set[int]) -> int:
    """The port asked for, else the preferred one, else any free one.

    Raises:
        DemoError: the port asked for is in use.
    """
    for port in (wanted,) if wanted else (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found = probe.getsockname()[1]
            if found not in taken:
                taken.add(found)
                return found
    raise DemoError(f"port {wanted} is in use; choose another one, or leave the choice to the script")


def answers(url: str, question: dict | None = None) -> bytes | None:
    """Body of the answer to a GET, or to a POST of JSON; None while there is none."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=5) as response:
            return response.read()
    except (OSError, urllib.error.URLError, ValueError):
        return None


def lists_a_model(controller: str) -> bool:
    """Whether a worker has registered."""
    body = answers(f"{controller}/list_models", {})
    return body is not None and bool(json.loads(body).get("models"))


def make_services(args: argparse.Namespace) -> tuple[list[Service], str]:
    """The three processes in the order of their start, and the page's address.

    Raises:
        DemoError: a port is in use.
    """
    taken: set[int] = set()
    ports = [
        choose_port(wanted, preferred, taken)
        for wanted, preferred in ((args.controller_port, 21001), (args.worker_port, 21002), (args.port, 7860))
    ]
    controller, worker, page = (f"http://{HOST}:{port}" for port in ports)

    def module(name: str, port: int, *flags: str) -> list[str]:
        return [sys.executable, "-m", f"llava.serve.{name}", "--host", HOST, "--port", str(port), *flags]

    model = ["--model-path", args.model, "--device", args.device]
    if args.model_base:
        model += ["--model-base", args.model_base]
    services = [
        Service(
            "controller", module("controller", ports[0]), lambda: answers(f"{controller}/list_models", {}) is not None
        ),
        Service(
            "model worker",
            module(
                *("model_worker", ports[1], "--controller-address", controller, "--worker-address", worker),
                *("--limit-model-concurrency", "16", *model),  # as many replies as the page asks for at once
            ),
            lambda: lists_a_model(controller),
        ),
        Service(
            "web server",
            module("gradio_web_server", ports[2], "--controller-url", controller, "--model-list-mode", "reload"),
            lambda: answers(page) is not None,
        ),
    ]
    return services, page


class Supervisor:
    """Runs services one after the other and ends them together.

    Args:
        folder: where their output goes.
        patience: seconds until a service must be ready.
    """

    def __init__(self, folder: Path, patience: float = 900.0) -> None:
        self.folder = folder
        self.patience = patience
        self.running: list[tuple[Service, subprocess.Popen]] = []

    def log_of(self, service: Service) -> Path:
        return self.folder / f"{service.name.replace(' ', '-')}.out"

    def start(self, service: Service) -> None:
        """Start a service and wait until it is ready.

        Raises:
            DemoError: one of the processes ended, or it takes too long.
        """
        with self.log_of(service).open("wb") as log:
            # A group of its own: Ctrl-C reaches this program alone, which then ends the services in order.
            process = subprocess.Popen(service.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.running.append((service, process))
        deadline = time.monotonic() + self.patience
        while not service.is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"the {service.name} is not ready after {self.patience:.0f} s\n{self._end_of(service)}")
            time.sleep(LOOK_EVERY)
        self.check()

    def check(self) -> None:
        """Raise if a process has ended.

        Raises:
            DemoError: it has; with the end of its log.
        """
        for service, process in self.running:
            status = process.poll()
            if status is not None:
                raise DemoError(f"the {service.name} ended with status {status}\n{self._end_of(service)}")

    def _end_of(self, service: Service) -> str:
        path = self.log_of(service)
        lines = path.read_text(errors="replace").splitlines()[-LINES_SHOWN:]
        return "\n".join([f"(the end of {path}:)", *(f"  {line}" for line in lines)])

    def stop(self) -> None:
        """End all processes, the last started first; those that do not end in time are killed."""
        for _, process in reversed(self.running):
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for _, process in reversed(self.running):
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)  # also what a dead leader left behind
            process.wait()
        self.running.clear()


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def run(services: list[Service], page: str, folder: Path) -> None:
    """Start, say where the page is, and wait until Ctrl-C or a death.

    Raises:
        DemoError: a service died or never became ready.
    """
    supervisor = Supervisor(folder)
    try:
        for service in services:
            print(f"Starting the {service.name}...", flush=True)
            supervisor.start(service)
        print(f"\nThe demo is at {page}\nCtrl-C stops it. Logs and chats: {folder}", flush=True)
        while True:
            time.sleep(LOOK_EVERY)
            supervisor.check()
    finally:
        # A second Ctrl-C must not leave half of them running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        supervisor.stop()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--model-base", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int)
    parser.add_argument("--controller-port", type=int)
    parser.add_argument("--worker-port", type=int)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    os.umask(0o077)  # logs hold what visitors say
    folder = Path(os.environ.get("LLAVA_LOGDIR", "."))
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell that started this ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        run(*make_services(args), folder)
    except DemoError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped.")


if __name__ == "__main__":
    main()
