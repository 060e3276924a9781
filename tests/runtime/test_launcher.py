"""What a process learns from ``srun`` and ``torchrun`` before it imports torch."""

import os
import subprocess
import sys

import pytest

from ssdd.runtime.launcher import _init_is_python, follow_launcher

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def variables(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that are new or changed after ``follow_launcher``."""
    changed = dict(environment)
    monkeypatch.setattr(os, "environ", changed)
    follow_launcher()
    return {name: value for name, value in changed.items() if environment.get(name) != value}


def test_a_task_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks would not find one another, or two steps on one machine would meet."""
    found = variables(monkeypatch, STEP)
    port = int(found.pop("MASTER_PORT"))
    assert found == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "node003"}
    assert 15000 <= port < 30000
    for other in ({"SLURM_STEP_ID": "3"}, {"SLURM_JOB_ID": "123457"}):
        assert variables(monkeypatch, STEP | other)["MASTER_PORT"] != str(port)


def test_a_meeting_point_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose network needs another name or port could not be used."""
    found = variables(monkeypatch, {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert found == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[003-007,9]", "node003"),
        ("a1,b2", "a1"),
        ("gpu-7", "gpu-7"),
        ("n[12,14],m[1-2]", "n12"),
        ("r[2-3]n[5,7]", "r2n5"),
    ],
)
def test_first_node(monkeypatch: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    """The tasks would wait for a machine that does not exist. Old versions of SLURM name nodes and count otherwise."""
    old = {name: value for name, value in STEP.items() if name not in ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS")}
    found = variables(monkeypatch, {**old, "SLURM_NODELIST": nodes, "SLURM_NTASKS": "16"})
    assert (found["MASTER_ADDR"], found["WORLD_SIZE"]) == (first, "16")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODELIST": "a"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
        {**STEP, "RANK": "0"},
    ],
    ids=["alone", "batch script", "step of one task", "torchrun"],
)
def test_a_process_that_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """It would wait for tasks that do not exist, or leave the group that torchrun made."""
    assert variables(monkeypatch, environment) == {}


@pytest.mark.skipif(sys.platform != "linux" or _init_is_python(), reason="needs a Linux whose init is not Python")
def test_a_worker_whose_torchrun_is_gone_already() -> None:
    """The signal of its death has come before the worker asked for it, and the worker would stay for ever."""
    worker = (
        "import os, time\n"
        "from ssdd.runtime.launcher import follow_launcher\n"
        "while os.getppid() != 1: time.sleep(0.01)\n"
        "print('adopted', flush=True)\n"
        "follow_launcher()\n"
        "print('went on')"
    )
    torchrun = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {worker!r}])"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1", "RANK": "0"}
    command = [sys.executable, "-c", torchrun]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "adopted\n", done.stderr
