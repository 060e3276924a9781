"""Group norm, affine map and SiLU on a CPU, by kernels that torch.compile makes: forward in two passes over memory
instead of five, backward in three instead of ten.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1), which divide
the level evenly; R = B * H rows. Memory has channels last.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .norm_gradients import channel_statistics, group_origin

P = ParamSpec("P")
Result = TypeVar("Result")


def norm_silu(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``silu(norm(x) * scale + shift)`` with gradients. x: (B, C, H, W). scale, shift: (B or 1, C, h, w)."""
    return _NormSilu.apply(x, scale, shift, groups, eps)


def norm_silu_without_gradient(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, overwrite: bool
) -> Tensor:
    """Return the same for inference, in the memory of x if it may be overwritten."""
    return _forward(x, groups, scale, shift, eps, overwrite)[0]


def norm_silu_by_moments(
    x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, eps: float, overwrite: bool
) -> Tensor:
    """Return the same with given moments of each channel, (C,), for inference."""
    mean, deviation = (m.expand(len(x), -1) for m in (mean, torch.rsqrt(variance + eps)))
    with torch.compiler.set_stance("default"):  # tiles force networks that are compiled to run as they are written
        return _normalize_image(x, mean, deviation, scale, shift, overwrite)


def _forward(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, overwrite: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, H, W); mean of the group, and one over its deviation, for each channel: (B, C)."""
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    mean, deviation = _statistics(pixels, group_origin(pixels, groups), groups, eps)
    return _normalize_image(x, mean, deviation, scale, shift, overwrite), mean, deviation


def _normalize_image(
    x: Tensor, mean: Tensor, deviation: Tensor, scale: Tensor, shift: Tensor, overwrite: bool
) -> Tensor:
    """x: (B, C, H, W). mean, deviation: (B, C). scale, shift: (B or 1, C, h, w)."""
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    rows, columns = scale.shape[2:]
    blocks = pixels.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))  # (B, h, H/h, w, W/w, C)
    arguments = (blocks, mean, deviation, scale.permute(0, 2, 3, 1), shift.permute(0, 2, 3, 1))
    if overwrite:
        _normalize_in_place(*arguments)
        return x
    return _normalize(*arguments).view(pixels.shape).permute(0, 3, 1, 2)


class _NormSilu(torch.autograd.Function):
    """Keeps its input, and computes what lies between again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        out, mean, deviation = _forward(x, groups, scale, shift, eps)
        ctx.groups = groups
        ctx.save_for_backward(x, mean, deviation, scale, shift)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, mean, deviation, scale, shift = ctx.saved_tensors
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        grid, size = scale.shape[2:], pixels.shape

        # norm(x) * scale + shift = x * factor + offset
        factor = deviation[:, None, None] * scale.permute(0, 2, 3, 1).float()  # (B, h, w, C)
        offset = shift.permute(0, 2, 3, 1).float() - mean[:, None, None] * factor
        factors, offsets = (v.repeat_interleave(size[1] // grid[0], 1).flatten(0, 1) for v in (factor, offset))

        x_rows, gradient_rows = (_rows(v.permute(0, 2, 3, 1), grid[1]) for v in (x, gradient))  # (R, w, W/w, C)
        means = mean.repeat_interleave(size[1], 0)  # (R, C)
        inner = _silu_gradient(gradient_rows, x_rows, factors, offsets)
        sums = (v.view(size[0], grid[0], -1, *v.shape[1:]).sum(2) for v in _cell_sums(inner, x_rows, means))
        of_shift, of_scale = next(sums), next(sums) * deviation[:, None, None]  # (B, h, w, C) each

        # The gradient of x is (g - mean(g) - y mean(g y)) / deviation, g = inner * scale, y = norm(x), means by group.
        slope = -deviation.square() * _group_mean(of_scale, scale, ctx.groups, size)  # (B, C)
        constant = -deviation * _group_mean(of_shift, scale, ctx.groups, size) - slope * mean
        slopes, constants = (v.repeat_interleave(size[1], 0) for v in (slope, constant))
        result = _input_gradient(inner, x_rows, factors, slopes, constants).view(size).permute(0, 3, 1, 2)
        return result, _like(of_scale, scale), _like(of_shift, shift), None, None


def _rows(pixels: Tensor, columns: int) -> Tensor:
    """(B, H, W, C) -> (R, w, W/w, C)."""
    return pixels.contiguous().flatten(0, 1).unflatten(1, (columns, -1))


def _group_mean(sums: Tensor, scale: Tensor, groups: int, size: torch.Size) -> Tensor:
    """(B, C): the mean over a group of what, but for the scale, has these sums in the cells, (B, h, w, C)."""
    repeat = size[3] // groups
    total = (sums * scale.permute(0, 2, 3, 1).float()).sum((1, 2)).unflatten(1, (groups, -1)).sum(2)
    return (total / (size[1] * size[2] * repeat)).repeat_interleave(repeat, 1)


def _like(gradient: Tensor, argument: Tensor) -> Tensor:
    """(B, h, w, C) -> the shape and type of a scale, (B or 1, C, h, w)."""
    return gradient.permute(0, 3, 1, 2).sum_to_size(argument.shape).to(argument.dtype)


def _compiled(function: Callable[P, Result]) -> Callable[P, Result]:
    """By Inductor, for all sizes at once; made at the first call, for the compiler takes seconds to import."""

    @functools.cache
    def made() -> Callable[P, Result]:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        return made()(*args, **kwargs)

    return call


_statistics = _compiled(channel_statistics)


@_compiled
def _normalize_in_place(blocks: Tensor, mean: Tensor, deviation: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Replace the blocks by what ``_normalized`` makes of them."""
    blocks.copy_(_normalized(blocks, mean, deviation, scale, shift))


def _normalized(blocks: Tensor, mean: Tensor, deviation: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU of the norm's result, scaled and shifted.

    blocks: (B, h, H/h, w, W/w, C). mean, deviation: (B, C). scale, shift: (B or 1, h, w, C).
    """
    mean, deviation = (m[:, None, None, None, None] for m in (mean, deviation))
    scale, shift = (m.float()[:, :, None, :, None] for m in (scale, shift))
    y = (blocks.float() - mean) * deviation * scale + shift
    return (y * torch.sigmoid(y)).to(blocks.dtype)


_normalize = _compiled(_normalized)


@_compiled
def _silu_gradient(gradient: Tensor, x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Gradient of the SiLU's input, (R, w, W/w, C), of the type of x. factor, offset: (R, w, C).

    Kept, not computed twice: sums are vector code only if there is little else in their pass.
    """
    y = x.float() * factor[:, :, None] + offset[:, :, None]
    gate = torch.sigmoid(y)
    return (gradient.float() * (gate * (1 + y * (1 - gate)))).to(x.dtype)


@_compiled
def _cell_sums(inner: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of inner, and of inner * (x - mean), over a row of a cell: (R, w, C) float32. mean: (R, C)."""
    inner = inner.float()
    return inner.sum(2), (inner * (x.float() - mean[:, None, None])).sum(2)


@_compiled
def _input_gradient(inner: Tensor, x: Tensor, factor: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    """``inner * factor + x * slope + constant``: (R, w, W/w, C). factor: (R, w, C). slope, constant: (R, C)."""
    y = inner.float() * factor[:, :, None] + x.float() * slope[:, None, None] + constant[:, None, None]
    return y.to(x.dtype)
