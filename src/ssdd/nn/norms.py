"""Group norm, affine map and SiLU: what stands before every convolution.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1).

``norm_silu`` is the plain version, for any device and for training. ``fused_norm_silu`` is for inference on a CPU: two
passes over memory, made by torch.compile, instead of five. Both give the same but for rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_unary

P = ParamSpec("P")
R = TypeVar("R")


def norm_silu(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``silu(norm(x) * scale + shift)`` with the group norm without weights.

    x: (B, C, H, W). scale, shift: (B or 1, C, h, w), any grid; nearest neighbour. Returns (B, C, H, W).
    """
    return silu(affine_group_norm(x, groups, scale, shift, eps))


def affine_group_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``norm(x) * scale + shift``; arguments as for ``norm_silu``."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not has_torch_function_unary(x):
        # With channels last PyTorch's own is exact to 1e-4 there, and its gradient slow. (Under a torch function mode
        # it is left alone: NormStatistics looks for it.)
        if wants_gradient(x):
            return modulate(_GroupNorm.apply(x, groups, eps), scale, shift)
        if x.dtype == torch.float32 and not x.is_contiguous():
            mean, deviation = _exact_statistics(x, groups, eps)
            factor = deviation * scale
            return modulate(x, factor, shift - mean * factor)
    if scale.numel() == scale.shape[1]:  # the same everywhere: weights of the norm
        return F.group_norm(x, groups, scale.flatten(), shift.flatten(), eps)
    return modulate(F.group_norm(x, groups, eps=eps), scale, shift)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` in one pass; x: (B, C, H, W); scale, shift: (B or 1, C, h, w), nearest neighbour."""
    size, grid = x.shape[-2:], scale.shape[-2:]
    if grid == (1, 1) or grid == size:
        return torch.addcmul(shift, x, scale)
    if wants_gradient(x, scale, shift) or size[0] % grid[0] or size[1] % grid[1]:
        # The gradient of a repeated map is quicker this way.
        return torch.addcmul(F.interpolate(shift, size), x, F.interpolate(scale, size))
    cells = x.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # (B, C, h, H/h, w, W/w)
    scale, shift = scale[:, :, :, None, :, None], shift[:, :, :, None, :, None]
    return torch.addcmul(shift, cells, scale).flatten(4, 5).flatten(2, 3)


def silu(x: Tensor) -> Tensor:
    """``F.silu`` of a result that nobody else holds: in place, but where gradients need it."""
    return F.silu(x, inplace=not wants_gradient(x))


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a graph is being made of what is done to them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _GroupNorm(torch.autograd.Function):
    """Group norm on a CPU. Keeps the result for the gradient, not the input: what follows keeps it as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, eps: float) -> Tensor:
        if x.dtype == torch.float32 and not x.is_contiguous():
            mean, deviation = _exact_statistics(x, groups, eps)
            y = torch.addcmul(-mean * deviation, x, deviation)
            deviation = deviation[:, :: x.shape[1] // groups, 0, 0]
        else:
            y, _, deviation = torch.native_group_norm(x, None, None, len(x), x.shape[1], x[0, 0].numel(), groups, eps)
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """``(g - mean(g) - y mean(g y)) / deviation``, with the means over the group."""
        y, deviation = ctx.saved_tensors  # (B, C, H, W), (B, G): one over the deviation
        result = torch.empty_like(y)
        for image in zip(gradient, y, deviation.float(), result, strict=True):  # one at a time: it stays in the cache
            _group_norm_gradient(*image)
        return result, None, None


def _group_norm_gradient(gradient: Tensor, y: Tensor, deviation: Tensor, out: Tensor) -> None:
    """Of one image, into ``out``. gradient, y: (C, H, W); deviation: (G,), one over it."""
    groups, repeat = len(deviation), len(y) // len(deviation)

    def mean(values: Tensor) -> Tensor:  # (G,)
        return values.sum((1, 2), dtype=torch.float32).unflatten(0, (groups, repeat)).sum(1) / values[:repeat].numel()

    def per_channel(values: Tensor) -> Tensor:  # (C, 1, 1)
        return values.repeat_interleave(repeat)[:, None, None].to(y.dtype)

    offset, slope = -deviation * mean(gradient), -deviation * mean(gradient * y)
    torch.addcmul(per_channel(offset), y, per_channel(slope), out=out)
    out.addcmul_(gradient, per_channel(deviation))


def _exact_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """``_statistics`` of (B, C, H, W), each (B, C, 1, 1)."""
    mean, deviation = _statistics(x.permute(0, 2, 3, 1), groups, eps)
    return mean[:, :, None, None], deviation[:, :, None, None]


def _statistics(pixels: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean of the group, and one over its deviation, for each channel: (B, C) float32. pixels: (B, H, W, C)."""
    values = pixels.float()
    count = values[0].numel() // groups
    # Rows first, both sums in one pass: the form of which the compiler makes vector code.
    total, squares = values.sum(2).sum(1), values.square().sum(2).sum(1)  # (B, C)
    mean = total.unflatten(1, (groups, -1)).sum(2, keepdim=True) / count  # (B, G, 1)
    variance = squares.unflatten(1, (groups, -1)).sum(2, keepdim=True) / count - mean.square()
    deviation = torch.rsqrt(variance.clamp(min=0.0) + eps)
    shape = (len(pixels), groups, pixels.shape[3] // groups)
    return mean.expand(shape).flatten(1), deviation.expand(shape).flatten(1)


def fused_norm_silu(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``norm_silu``, quicker on a CPU, where it can be: no gradients, channels last, whole cells.

    Under a torch function mode the plain version runs: ``NormStatistics`` looks for ``F.group_norm``.
    """
    whole = x.shape[2] % scale.shape[2] == 0 and x.shape[3] % scale.shape[3] == 0
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    gradient = wants_gradient(x, scale, shift)
    if gradient or not whole or not pixels.is_contiguous() or has_torch_function_unary(x):
        return norm_silu(x, groups, scale, shift, eps)
    _, rows, columns = scale.shape[1:]
    cells = pixels.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))  # (B, h, H/h, w, W/w, C)
    mean, deviation = _compiled_statistics(pixels, groups, eps)
    out = _normalize(cells, mean, deviation, scale.permute(0, 2, 3, 1), shift.permute(0, 2, 3, 1))
    return out.view(pixels.shape).permute(0, 3, 1, 2)


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """By Inductor, for all sizes at once; made at the first call, for the compiler takes seconds to import."""

    @functools.cache
    def made() -> Callable[P, R]:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return made()(*args, **kwargs)

    return call


_compiled_statistics = _compiled(_statistics)


@_compiled
def _normalize(cells: Tensor, mean: Tensor, deviation: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU of the norm's result, scaled and shifted.

    cells: (B, h, H/h, w, W/w, C). mean, deviation: (B, C). scale, shift: (B or 1, h, w, C).
    """
    mean, deviation = (m[:, None, None, None, None] for m in (mean, deviation))
    scale, shift = (m.float()[:, :, None, :, None] for m in (scale, shift))
    y = (cells.float() - mean) * deviation * scale + shift
    return (y * torch.sigmoid(y)).to(cells.dtype)
