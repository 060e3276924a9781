"""Quick equals of ``nn.ops``: here it is decided, by device, dtype, layout and gradients, which of them runs.

The networks call their operations here. ``using`` has them run by the functions of another module, ``reference`` by
the definitions.

Each function has the arguments and, but for rounding, the values and gradients of the one in ``nn.ops`` of its name.

- ``norm_gradients``: group norm with channels last on a CPU, whose gradient is slow in PyTorch.
- ``norm_compiled``: norm, modulation and SiLU as two kernels that torch.compile makes, on a CPU where it works.
- ``upsampling``: the 3x3 convolution of a doubled image by a transposed convolution.
- ``attention``: the window by blocks of queries, in linear memory.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

import torch
from torch import Tensor

from .. import ops
from ..whole_image import Moments
from . import norm_compiled, norm_gradients, norms, upsampling
from .attention import blockwise_attention

__all__ = [
    "downsample_conv",
    "group_norm",
    "norm_silu",
    "reference",
    "resize",
    "upsample_conv",
    "using",
    "windowed_attention",
]

DENSE_TOKENS = 512
"""Grids up to this size attend densely: a block sees 22 * 22 = 484 keys, so nothing is saved below that."""

_instead: ModuleType | None = None


@contextmanager
def using(operations: ModuleType) -> Iterator[None]:
    """Run the functions of a module inside, for the whole process.

    Args:
        operations: has the functions that ``nn.ops`` and this module have in common, with the arguments of ``nn.ops``.
    """
    global _instead
    before, _instead = _instead, operations
    try:
        yield
    finally:
        _instead = before


def reference() -> AbstractContextManager[None]:
    """Run the definitions of ``nn.ops`` inside, for the whole process."""
    return using(ops)


def group_norm(
    x: Tensor,
    groups: int,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    moments: Moments | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Return ``norm(x) * scale + shift``, in the memory of x if it may be overwritten; see ``ops.group_norm``."""
    if _instead is not None:
        return _instead.group_norm(x, groups, scale, shift, eps, moments)
    if moments is None and _channels_last_on_cpu(x):  # PyTorch's own is exact to 1e-4 there
        if norms.wants_gradient(x):
            return norms.modulate(norm_gradients.group_norm(x, groups, eps), scale, shift)
        if x.dtype == torch.float32:
            return norms.group_norm_in_one_map(x, groups, scale, shift, eps, overwrite)
    return norms.group_norm(x, groups, scale, shift, eps, moments)


def norm_silu(
    x: Tensor,
    groups: int,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    moments: Moments | None = None,
    compiled: bool = False,
    overwrite: bool = False,
) -> Tensor:
    """Return the SiLU of ``group_norm``; see ``ops.norm_silu``.

    Args:
        compiled: use the kernels of ``norm_compiled`` where they can be.
        overwrite: the result may take the memory of x.
    """
    if _instead is not None:
        return _instead.norm_silu(x, groups, scale, shift, eps, moments)
    gradient = norms.wants_gradient(x, scale, shift)
    own = _channels_last_on_cpu(x) and norms.whole_cells(x, scale)
    if compiled and own and x.dtype != torch.float64 and x.is_contiguous(memory_format=torch.channels_last):
        if moments is not None and not gradient:
            per_channel = moments.per_channel(x.shape[1])
            return norm_compiled.norm_silu_by_moments(x, *per_channel, scale, shift, eps, overwrite)
        if moments is None and gradient:
            return norm_compiled.norm_silu(x, groups, scale, shift, eps)
        if moments is None:
            return norm_compiled.norm_silu_without_gradient(x, groups, scale, shift, eps, overwrite)
    if own and gradient and moments is None:
        return norm_gradients.norm_silu(x, groups, scale.to(x.dtype), shift.to(x.dtype), eps)
    return norms.silu(group_norm(x, groups, scale, shift, eps, moments, overwrite))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return x at another size by nearest neighbours, x itself if it has that size; see ``ops.resize``."""
    if _instead is not None:
        return _instead.resize(x, size)
    return x if (x.shape[2], x.shape[3]) == size else ops.resize(x, size)


def downsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a 3x3 convolution of stride 2; see ``ops.downsample_conv``."""
    return (_instead or ops).downsample_conv(x, weight, bias)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Return a 3x3 convolution of x repeated to twice its size, cut to ``size``; see ``ops.upsample_conv``."""
    if _instead is not None:
        return _instead.upsample_conv(x, weight, bias, size)
    if tuple(size) != (2 * x.shape[-2], 2 * x.shape[-1]):
        return ops.upsample_conv(x, weight, bias, size)
    return upsampling.upsample_conv(x, weight, bias)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the attention of every token to the window around it; see ``ops.windowed_attention``.

    Raises ValueError if the grid does not match the number of tokens, or the table is not square and odd.
    """
    rows, columns = grid
    if rows * columns != q.shape[2]:
        raise ValueError(f"expected {rows} x {columns} = {rows * columns} tokens, found {q.shape[2]}")
    if table.shape[0] != table.shape[1] or table.shape[0] % 2 == 0 or table.shape[2] != q.shape[1]:
        raise ValueError(
            f"expected a bias table (2r+1, 2r+1, {q.shape[1]}) for {q.shape[1]} heads, found {tuple(table.shape)}"
        )
    if _instead is not None:
        return _instead.windowed_attention(q, k, v, table, grid)
    dense = rows * columns <= DENSE_TOKENS
    return (ops.windowed_attention if dense else blockwise_attention)(q, k, v, table, grid)


def _channels_last_on_cpu(x: Tensor) -> bool:
    """Whether the functions of our own apply: they take channels last on a CPU, and no transforms of torch.func."""
    if x.device.type != "cpu" or x.is_contiguous() or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active()
