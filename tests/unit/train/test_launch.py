"""The world of processes, as srun, mpirun and the launchers of torch and DeepSpeed describe it."""

import logging
import os
import sys
from unittest import mock

import pytest
import torch

from llava.train.launch import first_host, prepare_launch, world_of_launcher

SLURM = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "12", "SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
ALONE = ["--deepspeed", "zero2.json"]


def prepared(environ: dict[str, str], args: list[str] | None = None, devices: int = 0) -> dict[str, str]:
    """What `prepare_launch` leaves in an environment that has only `environ`."""
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(torch.cuda, "device_count", lambda: devices),
    ):
        prepare_launch(args or [])
        return dict(os.environ)


def test_srun() -> None:
    world = prepared(SLURM, ALONE, devices=8)
    expected = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "4", "LOCAL_SIZE": "4"}
    expected |= {"MASTER_ADDR": "gpu03", "MASTER_PORT": str(10_000 + 123456 % 20_000)}
    assert world == SLURM | expected
    other = prepared(SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert (other["RANK"], other["MASTER_PORT"], other["LOCAL_WORLD_SIZE"]) == ("0", world["MASTER_PORT"], "8")
    assert prepared(SLURM | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != world["MASTER_PORT"]
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}
    assert own.items() <= prepared(SLURM | own).items()


def test_a_process_that_sees_only_its_own_device_uses_it() -> None:
    assert prepared(SLURM, devices=1)["LOCAL_RANK"] == "0"


def test_mpirun() -> None:
    world = prepared(OPEN_MPI, ALONE)
    assert (world["RANK"], world["LOCAL_RANK"], world["WORLD_SIZE"]) == ("3", "3", "4")
    assert (world["MASTER_ADDR"], world["MASTER_PORT"]) == ("127.0.0.1", "29500")
    two_nodes = OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "8"}
    with pytest.raises(ValueError, match="mpirun -x MASTER_ADDR=<host of rank 0>"):
        world_of_launcher(two_nodes)
    found = world_of_launcher(two_nodes | {"MASTER_ADDR": "node1"})
    assert found is not None and found["MASTER_ADDR"] == "node1"


def test_processes_that_cannot_find_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="process 1 of 4 of an MPI whose variables are not known"):
        world_of_launcher({"PMI_RANK": "1", "PMI_SIZE": "4"})
    with pytest.raises(ValueError, match="set MASTER_ADDR and MASTER_PORT"):
        world_of_launcher({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"})


def test_one_process() -> None:
    """A world of one for DeepSpeed, also in a batch script, whose variables count the tasks that srun would start."""
    batch = {"SLURM_JOB_ID": "5", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    for environ in ({}, batch, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}):
        for args in (ALONE, ["--deepspeed=zero2.json"]):
            world = prepared(environ, args)
            assert (world["RANK"], world["WORLD_SIZE"], world["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
        assert prepared(environ, ["--bf16", "True"]) == environ


def test_torchrun_and_deepspeed_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"}
    assert prepared(given, ALONE) == given
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        prepared(given | {"WORLD_SIZE": "8"}, ALONE)
    assert "srun started 2 tasks, and each began a run of its own" in caplog.text


@pytest.mark.parametrize(
    "nodes, first",
    [("node7", "node7"), ("a1,a2", "a1"), ("gpu[03-05,9],login", "gpu03"), ("n[12,14]", "n12"), ("r[1-2]-ib", "r1-ib")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_training_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.train import train as train_module

    class Asked(Exception):
        pass

    def ask(args: list[str]) -> None:
        raise Asked(args)

    monkeypatch.setattr(train_module, "prepare_launch", ask)
    monkeypatch.setattr(sys, "argv", ["train.py", "--bf16", "True"])
    with pytest.raises(Asked, match="bf16"):
        train_module.train()
