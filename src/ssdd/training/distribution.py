"""How a network is spread over the processes that train it, and put together again.

Everything else is written for one process; with one, all of this does nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..runtime.dtypes import Dtype, torch_dtype
from ..runtime.processes import Processes
from .config import RunConfig


def spread(model: nn.Module, processes: Processes, config: RunConfig, ddp: bool = False) -> nn.Module:
    """Return the network to call in training: ``model`` itself, wrapped by DDP, or sharded in place by FSDP2.

    ``ddp``: never sharded, for small networks.
    """
    if config.parallel == "fsdp" and not ddp:
        shard(model, processes, config.precision)
        return model
    if processes.count == 1:
        return model
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: nn.Module, processes: Processes, precision: Dtype) -> None:
    """Shard by FSDP2, in place: each block is gathered when it is its turn, in the precision of the computation.

    Gradients are reduced in float32. Parameters must be contiguous.
    """
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    dtype = None if precision == "fp32" else torch_dtype(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in _used_from_outside(model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the parts that a model is gathered, and compiled, by."""
    from ..autoencoder import AutoencoderSSDD

    names = (*AutoencoderSSDD._no_split_modules, "DiTBlock", "BasicTransformerBlock")  # the last of diffusers' DiT
    return [module for module in model.modules() if type(module).__name__ in names]


def _used_from_outside(model: nn.Module) -> list[nn.Module]:
    """Return parts of blocks that are not called by their block alone, and must be gathered for that.

    diffusers' DiT asks its first block for the embedding of time and class when the block's turn is over.
    """
    found = [module for module in model.modules() if type(module).__name__ == "CombinedTimestepLabelEmbeddings"]
    return found[:1]


def accumulating(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Return a context for a forward and backward pass: gradients meet those of other processes in the ``last`` one."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    return nullcontext()


def full_tensor(value: Tensor) -> Tensor:
    """Return a tensor in one piece, also where it is sharded (then all processes must ask for it)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_part(value: Tensor) -> Tensor:
    """Return the part of a tensor that this process keeps: all of it where it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def sum_of_parts(value: Tensor, sharded: Tensor) -> Tensor:
    """Return the sum of ``value`` over the processes that keep the parts of ``sharded``; itself if there are none."""
    if not isinstance(sharded, DTensor):
        return value
    return DTensor.from_local(value, sharded.device_mesh, [Partial()]).full_tensor()


def write_back(kept: Sequence[Tensor], whole: Sequence[Tensor]) -> None:
    """Copy whole tensors, which are equal in all processes, to the shards that they came from by ``full_tensor``."""
    for tensor, value in zip(kept, whole, strict=True):
        if isinstance(tensor, DTensor):
            tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None))


def as_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor as ``parameter`` is kept: its device, its order in memory, its sharding."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    # fused optimisers walk through parameter and state side by side: channels-last must be so in both
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def full_state(module: nn.Module, main: bool = True) -> dict[str, Tensor]:
    """Return the ``state_dict`` on the CPU, every tensor in one piece: a call for all; only ``main`` gets it."""
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        gathered = full_tensor(value.detach())  # one at a time: a whole model need not fit a GPU
        if main:
            state[name] = gathered.cpu()
    return state
