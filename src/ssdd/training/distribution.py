"""Several processes under ``torchrun``: who am I, how is the network spread, how do all agree.

Everything else is written for one process; with one, all of this does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

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


def spread(model: nn.Module, processes: Processes, parallel: Parallel) -> nn.Module:
    """The network to call in training: ``model`` itself, wrapped by DDP, or sharded in place by FSDP2."""
    if parallel == "fsdp":
        shard(model, processes)
        return model
    if processes.count == 1:
        return model
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: nn.Module, processes: Processes) -> None:
    """FSDP2, in place: each block is gathered when it is its turn. Parameters must be contiguous."""
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts that a model is gathered, and compiled, by."""
    from ..autoencoder import AutoencoderSSDD

    return [module for module in model.modules() if type(module).__name__ in AutoencoderSSDD._no_split_modules]


def accumulating(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around one forward and backward pass: gradients meet those of other processes in the ``last`` one only."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    return nullcontext()


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor that every process has; itself where there is one process."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def whole(value: Tensor) -> Tensor:
    """A tensor in one piece, also where it is sharded (then all processes must ask for it)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value``, whole, as ``parameter`` is kept: its device, its order in memory, its sharding."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    # fused optimisers walk through parameter and state side by side: channels-last must be so in both
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def whole_state(module: nn.Module, main: bool = True) -> dict[str, Tensor]:
    """``state_dict`` on the CPU, every tensor in one piece: a call for all processes; only the ``main`` one gets it."""
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        gathered = whole(value.detach())  # one at a time: a whole model need not fit a GPU
        if main:
            state[name] = gathered.cpu()
    return state


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
