"""Processes that work together, and how many there is room for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.runtime.processes import usable_cores
from tests.training.runs import SMALL

SUM = """
import torch
from ssdd.runtime.processes import join_processes, sum_over_processes
with join_processes(torch.device("cpu")) as processes:
    print(processes.rank, processes.count, sum_over_processes(10**processes.rank))
"""
SAME = """
import torch
from ssdd.runtime.processes import check_same, join_processes
with join_processes(torch.device("cpu")) as processes:
    check_same({"latents": 1, "classes": [2]})
    try:
        check_same({"latents": 1, "classes": [processes.rank]})
        print("no error")
    except ValueError as error:
        print(error)
"""
SLEEP = """
import os, pathlib, sys, time, torch
from ssdd.runtime.processes import join_processes
with join_processes(torch.device("cpu")) as processes:
    pathlib.Path(sys.argv[1], f"{processes.rank}.pid").write_text(str(os.getpid()))
    time.sleep(300)
"""


def in_slurm_tasks(*arguments: str) -> list[str]:
    """Run Python as each of two tasks of ``srun`` and return what they print."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    environment |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
    environment |= {"SLURM_STEP_NUM_TASKS": "2", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    return [out for out, _ in printed]


def test_tasks_of_srun_join() -> None:
    """A script under ``srun`` without torchrun would run once for each task, all with the same data."""
    assert in_slurm_tasks("-c", SUM) == ["0 2 11\n", "1 2 11\n"]


def test_other_files_on_another_machine_are_told() -> None:
    """Each process would train on its own latents, and nobody would know."""
    first, second = in_slurm_tasks("-c", SAME)
    assert first.startswith("expected the same classes in all processes, found others in process 1 than in process 0")
    assert second == "no error\n", "the main process ends the others"


@pytest.mark.slow
def test_tasks_of_srun_train_together(tmp_path: Path, picture: Callable[..., np.ndarray]) -> None:
    """``srun ssdd train`` would start trainings that write to one folder."""
    for i in range(4):
        Image.fromarray(picture(24, 32, i)).save(tmp_path / f"{i}.png")
    options = ["--out", str(tmp_path / "run"), "--data.paths", str(tmp_path), *SMALL, "--total-images", "8"]
    main, other = in_slurm_tasks("-m", "ssdd", "train", "tiny-encoder", *options)
    assert main.startswith("trained model in "), "the main process is another"
    assert other == "", "every process prints"


def test_workers_end_with_torchrun(tmp_path: Path) -> None:
    """Workers of a torchrun that was killed would keep their memory and GPUs."""
    (tmp_path / "sleep.py").write_text(SLEEP)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    torchrun = subprocess.Popen([*launcher, str(tmp_path / "sleep.py"), str(tmp_path)], env=environment)
    until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 120)
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    torchrun.kill()
    torchrun.wait()
    try:
        assert len(pids) == 2, "the workers did not start"
        until(lambda: not any(map(alive, pids)), 10)
        assert not any(map(alive, pids)), "a worker is left"
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether the process runs: one that has ended stays in the table until it is waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(happened: Callable[[], bool], seconds: float) -> None:
    """Wait until something has happened, but no longer than so many seconds."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("100000 0\n", 8),
        ("", 8),
    ],
)
def test_a_quota_is_not_exceeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    path = tmp_path / "cpu.max"
    path.write_text(quota)
    assert usable_cores(path) == expected


def test_without_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path / "none") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "none") == 1
