"""A GPU that computes nothing: whether the library's work on CUDA is all on one device, and where the host would wait.

PyTorch's fake tensors have a shape, a type and a device, and no values. As on a real GPU, an operation on tensors of
two devices raises; and reading a value, for which a host waits for its GPU, raises as well, for there is none. Copies
between host and GPU are written down, with whether the host waits for them.

Backward passes need a driver: here they hand out gradients of zeros.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda:0")


@dataclass(frozen=True)
class Copy:
    """Between host and GPU. waits: whether the host does nothing else meanwhile."""

    to: str
    shape: tuple[int, ...]
    waits: bool


@dataclass
class FakeCuda(TorchDispatchMode):
    """Inside ``with fake_cuda():``, tensors of ``CUDA`` can be made and worked with."""

    copies: list[Copy] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        source = next((a for a in reversed(args) if isinstance(a, Tensor)), None)
        moves = isinstance(result, Tensor) and source is not None and result.device.type != source.device.type
        if moves and source.dim() + result.dim() > 0:  # a number on the host goes along with the launch
            self.copies.append(Copy(result.device.type, tuple(result.shape), not kwargs.get("non_blocking", False)))
        return result


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """No driver is needed, and none is used."""
    fakes = FakeTensorMode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)  # copies stay in it
        patch.setattr(torch, "Generator", _generator(torch.Generator))
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(Tensor, "backward", lambda loss, *_, **__: None)
        patch.setattr(torch.autograd, "grad", lambda loss, inputs, **_: (torch.zeros_like(inputs),))
        with fakes, FakeCuda() as device:
            yield device


def _generator(real: type[torch.Generator]) -> Callable[..., torch.Generator]:
    return lambda device="cpu": real("cpu")


def to_fake_cuda(module: nn.Module) -> nn.Module:
    """Its parameters and buffers on the GPU, each in its own memory order; ``Module.to`` cannot make fakes of them."""

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer)
    return module
