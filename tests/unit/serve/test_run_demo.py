"""scripts/demo.sh and its supervisor: order, readiness, one death ends all, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts/lib"))
import run_demo


def service(name: str, folder: Path, code: str = "") -> run_demo.Service:
    """A process that writes its number into a file, is ready then, and sleeps."""
    ready = folder / f"{name}.ready"
    code = f"import os, sys, time\nopen({str(ready)!r} + '.part', 'w').write(str(os.getpid()))\n" + (
        f"os.replace({str(ready)!r} + '.part', {str(ready)!r})\n{code}\ntime.sleep(600)"
    )
    return run_demo.Service(name, [sys.executable, "-c", code], ready.exists)


def is_alive(folder: Path, name: str) -> bool:
    try:
        os.kill(int((folder / f"{name}.ready").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_all_are_started_and_stopped(tmp_path: Path) -> None:
    supervisor = run_demo.Supervisor(tmp_path)
    for name in ("a", "b"):
        supervisor.start(service(name, tmp_path))
    supervisor.check()
    assert is_alive(tmp_path, "a") and is_alive(tmp_path, "b")
    supervisor.stop()
    assert not is_alive(tmp_path, "a") and not is_alive(tmp_path, "b")


def test_a_death_at_the_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    dies = run_demo.Service("model worker", [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], bool)
    with pytest.raises(run_demo.DemoError, match=r"(?s)model worker ended with status 3.*no such model"):
        run_demo.run([service("a", tmp_path), dies], "", tmp_path)
    assert not is_alive(tmp_path, "a")


def test_a_later_death_ends_all(tmp_path: Path) -> None:
    a, b = service("a", tmp_path), service("b", tmp_path, "sys.exit('out of memory')")
    with pytest.raises(run_demo.DemoError, match="b ended with status 1"):
        run_demo.run([a, b], "http://here", tmp_path)
    assert not is_alive(tmp_path, "a")


def test_one_that_is_never_ready(tmp_path: Path) -> None:
    supervisor = run_demo.Supervisor(tmp_path, patience=0.3)
    with pytest.raises(run_demo.DemoError, match="not ready after"):
        supervisor.start(run_demo.Service("slow", [sys.executable, "-c", "import time; time.sleep(600)"], bool))
    supervisor.stop()


def test_ctrl_c_stops_them(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(REPOSITORY / "scripts/lib")!r}, {str(REPOSITORY)!r}]
import run_demo, pathlib
from tests.unit.serve.test_run_demo import service
folder = pathlib.Path({str(tmp_path)!r})
run_demo.make_services = lambda args: ([service("a", folder), service("b", folder)], "http://here")
sys.argv = ["run_demo", "--model", "m"]
run_demo.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LLAVA_LOGDIR": str(tmp_path)},
    )
    for line in process.stdout:
        if "The demo is at http://here" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and "Stopped." in rest
    assert not is_alive(tmp_path, "a") and not is_alive(tmp_path, "b")


def test_ports() -> None:
    import socket

    taken: set[int] = set()
    with socket.socket() as busy:
        busy.bind((run_demo.HOST, 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert run_demo.choose_port(None, port, taken) != port
        with pytest.raises(run_demo.DemoError, match=f"port {port} is in use"):
            run_demo.choose_port(port, port, taken)


def test_commands_name_loopback_and_each_other() -> None:
    args = run_demo.build_parser().parse_args(["--model", "m", "--model-base", "b"])
    (controller, worker, web), page = run_demo.make_services(args)
    for one in (controller, worker, web):
        assert one.command[one.command.index("--host") + 1] == "127.0.0.1"
    address = worker.command[worker.command.index("--controller-address") + 1]
    assert address == web.command[web.command.index("--controller-url") + 1]
    assert address.endswith(controller.command[controller.command.index("--port") + 1])
    assert worker.command[worker.command.index("--model-base") + 1] == "b"
    assert page.startswith("http://127.0.0.1:") and not controller.is_ready()


def test_a_missing_model_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for path in ("scripts/demo.sh", "scripts/lib/setup.sh"):
        copy = tmp_path / path
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((REPOSITORY / path).read_text())
    environment = {key: value for key, value in os.environ.items() if key != "MODEL"}
    started = time.monotonic()
    result = subprocess.run(
        ["bash", str(tmp_path / "scripts/demo.sh")], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 1 and result.stdout == "" and time.monotonic() - started < 5
    assert result.stderr.startswith("error: there is no model in checkpoints/playground/llava-acformer yet")
    assert "scripts/quickstart.sh" in result.stderr and "MODEL=" in result.stderr


@pytest.mark.parametrize(("variables", "offline"), [({}, "0"), ({"HF_HUB_OFFLINE": "1"}, "1")])
def test_a_model_that_is_named_may_be_fetched(tmp_path: Path, variables: dict[str, str], offline: str) -> None:
    (tmp_path / "scripts/lib").mkdir(parents=True)
    (tmp_path / "scripts/demo.sh").write_text((REPOSITORY / "scripts/demo.sh").read_text())
    (tmp_path / "scripts/lib/setup.sh").write_text(
        "REPOSITORY=.\nensure_venv() { export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}; }\n"
        "python() { echo $HF_HUB_OFFLINE $*; }\nexec() { $*; }\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"MODEL": "someone/some-model", "DEVICE": "cpu", **variables}
    result = subprocess.run(
        ["bash", str(tmp_path / "scripts/demo.sh")], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.startswith(f"{offline} scripts/lib/run_demo.py --model someone/some-model ")
