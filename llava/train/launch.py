"""Which process of how many this one is, from the variables of whatever started it.

torchrun and DeepSpeed's launcher set `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, which torch
reads. Slurm's srun and Open MPI's mpirun have names of their own, which are translated here.
"""

import logging
import os
import re
import socket
from collections.abc import Mapping

import torch

logger = logging.getLogger(__name__)

MPI_PORT = "29500"


def prepare_launch(args: list[str]) -> None:
    """Set the variables that torch reads, if the launcher did not.

    Args:
        args: the command line. DeepSpeed needs the variables for a single process, too; without them it looks for MPI.

    Raises:
        ValueError: several processes were started, and nothing says how they find one another.
    """
    if "RANK" in os.environ:
        _warn_of_separate_runs(os.environ)
        return
    world = world_of_launcher(os.environ)
    if world is None and any(arg.split("=")[0] == "--deepspeed" for arg in args):
        world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    if world is None:
        return
    devices = torch.cuda.device_count()
    if devices:  # with --gpus-per-task each process sees its own device only, as the first
        world["LOCAL_RANK"] = str(int(world["LOCAL_RANK"]) % devices)
    os.environ.update(world)
    os.environ["LOCAL_SIZE"] = world["LOCAL_WORLD_SIZE"]  # DeepSpeed's name


def world_of_launcher(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The variables for torch from those of srun or mpirun; None if neither started several processes.

    `MASTER_ADDR` and `MASTER_PORT` of the environment win.

    Raises:
        ValueError: several processes were started, and nothing says how they find one another.
    """
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        world = _world_of_slurm(environ)
    elif int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        world = _world_of_open_mpi(environ)
    elif int(environ.get("PMI_SIZE", 1)) > 1:
        raise ValueError(
            f"This is process {environ.get('PMI_RANK')} of {environ['PMI_SIZE']} of an MPI whose variables are not "
            "known. Start with torchrun, deepspeed, srun or Open MPI's mpirun, or set RANK, LOCAL_RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT for every process"
        )
    else:
        return None
    return world | {name: environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environ}


def _world_of_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    if not nodes and "MASTER_ADDR" not in environ:
        raise ValueError(
            "srun started several tasks, but SLURM_STEP_NODELIST is not set; set MASTER_ADDR and MASTER_PORT"
        )
    # All tasks must choose the same port, and two job steps on one node different ones.
    port = 10_000 + (int(environ["SLURM_JOB_ID"]) + 997 * int(environ.get("SLURM_STEP_ID", 0))) % 20_000
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": _tasks_of_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ.get("SLURM_NODEID", 0))),
        "MASTER_ADDR": first_host(nodes),
        "MASTER_PORT": str(port),
    }


def first_host(nodes: str) -> str:
    """The first name in Slurm's short form of a list of nodes: `gpu[03-05,9],login` -> `gpu03`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def _tasks_of_node(counts: str, node: int) -> str:
    """An entry of Slurm's short form of a list of numbers: `8(x2),4` means 8, 8, 4."""
    tasks: list[str] = []
    for entry in counts.split(","):
        number, _, times = entry.partition("(x")
        tasks += [number] * int(times.rstrip(")") or 1)
    return tasks[node]


def _world_of_open_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    size, on_node = environ["OMPI_COMM_WORLD_SIZE"], environ["OMPI_COMM_WORLD_LOCAL_SIZE"]
    if size != on_node and "MASTER_ADDR" not in environ:
        raise ValueError(
            "mpirun started processes on several nodes, and they do not know the first one: pass its name with "
            "mpirun -x MASTER_ADDR=<host of rank 0> -x MASTER_PORT=29500 ..."
        )
    return {
        "RANK": environ["OMPI_COMM_WORLD_RANK"],
        "LOCAL_RANK": environ["OMPI_COMM_WORLD_LOCAL_RANK"],
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": on_node,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": MPI_PORT,
    }


def _warn_of_separate_runs(environ: Mapping[str, str]) -> None:
    """srun on several nodes, each of which starts a launcher that knows of its own node only."""
    on_node = environ.get("LOCAL_SIZE", environ.get("LOCAL_WORLD_SIZE"))
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and environ["WORLD_SIZE"] == on_node and environ["RANK"] == "0":
        logger.warning(
            "srun started %d tasks, and each began a run of its own. For one run over all of them, with one task per "
            "GPU: LAUNCHER=python srun bash SCRIPT",
            tasks,
        )


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
