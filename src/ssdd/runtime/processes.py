"""Work together as one of several processes that ``torchrun`` or ``srun`` started; count the cores for them.

With one process nothing waits, and every value is its own.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .launcher import follow_launcher

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all that work together."""

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the number of cores that this process may keep busy, at least 1: its affinity, limited by its quota.

    Args:
        quota: file in which Linux gives a container's CPU time: microseconds in each period of microseconds, or
            ``max``.
    """
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no numbers in it: no quota
        time, period = quota.read_text().split()
        cores = min(cores, int(time) // int(period))
    return max(1, cores)


@contextmanager
def join_processes(device: torch.device | None = None) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` or ``srun`` started; alone, be the only one. Gloo for CPUs, NCCL for GPUs.

    A worker of torchrun gets SIGTERM when torchrun dies.

    Args:
        device: device to use instead of the GPU with this process' local rank, or of the CPU without a GPU.
    """
    follow_launcher()
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device is None and torch.cuda.is_available():
        # srun may show each task its own GPU only, as number 0.
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    device = device or torch.device("cpu")
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
    """Return the mean of a tensor over all processes."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def broadcast(value: Any) -> Any:
    """Return the main process' value in every process; it is pickled on the way."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def check_same(facts: Mapping[str, Any]) -> None:
    """Raise ValueError in the main process if another one, on another machine perhaps, has other facts than it."""
    for rank, found in enumerate(gather(dict(facts))):
        if different := [name for name in facts if found.get(name) != facts[name]]:
            raise ValueError(
                f"expected the same {different[0]} in all processes, found others in process {rank} than in process 0: "
                "are the files of all machines the same?"
            )


def sum_over_processes(number: int) -> int:
    """Return the sum of a number over all processes."""
    if dist.is_available() and dist.is_initialized():
        box = torch.tensor([number], device="cpu")
        dist.all_reduce(box)
        number = int(box)
    return number


def gather(value: T) -> list[T]:
    """Return the values of all processes in the main one, by rank, and an empty list in the others.

    The values are pickled on the way.
    """
    if not dist.is_available() or not dist.is_initialized():
        return [value]
    box: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, box)
    return box or []
