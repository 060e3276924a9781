"""Several processes under ``torchrun``: who am I, and how do all agree; and how many there is room for.

Everything else is written for one process; with one, all of this does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all that work together."""

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Does this one write files and print?"""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may keep busy, at least 1: those that it may run on, and no more than its quota of time.

    ``quota``: the file in which Linux says, of a container, so many microseconds in so many, or ``max``.
    """
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no numbers in it: no quota
        time, period = quota.read_text().split()
        cores = min(cores, int(time) // int(period))
    return max(1, cores)


@contextmanager
def join_processes(device: torch.device | None = None) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this one alone: gloo for CPUs, nccl for GPUs.

    ``device``: instead of the GPU of this process' number, or the CPU where there is none.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(0, 1, device)
        return
    # Both: signals to stop and statistics travel as CPU tensors, without waiting for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield Processes(rank, count, device)
    # After an error in one process the others may be waiting for it: taking the group down in good order would wait
    # for them. It ends with this process, and torchrun ends the rest.
    dist.destroy_process_group()


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor that every process has; itself where there is one process."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def told_by_main(value: Any) -> Any:
    """What the main process has, in every process."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def all_agree(fine: bool) -> bool:
    """Is it so in every process?"""
    if not dist.is_available() or not dist.is_initialized():
        return fine
    flag = torch.tensor([int(fine)])
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def sum_over_processes(number: int) -> int:
    """Sum of a number that every process has."""
    if dist.is_available() and dist.is_initialized():
        box = torch.tensor([number])
        dist.all_reduce(box)
        number = int(box)
    return number


def gathered(value: T) -> list[T]:
    """What every process has, in the order of their ranks; empty in all but the main one. It is pickled on the way."""
    if not dist.is_available() or not dist.is_initialized():
        return [value]
    box: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, box)
    return box or []
