"""Group norm with channels last on a CPU, for training: autograd functions that keep one tensor and touch it rarely.

PyTorch's own gradient of a group norm is slow with channels last there, and norm, modulation and SiLU one after the
other keep three tensors of their input's size. Here the gradient of a few images is finished before the next ones'
is begun, so that what one operation leaves is in the cache for the next.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1), which divide
the level evenly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 1 << 20
"""Values of a tensor that are worked on at a time, so that some tensors of so many fit the cache."""


def group_norm(x: Tensor, groups: int, eps: float) -> Tensor:
    """Group norm without weights. (B, C, H, W) -> (B, C, H, W)."""
    return _GroupNorm.apply(x, groups, eps)


def norm_silu(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``silu(norm(x) * scale + shift)``. x: (B, C, H, W). scale, shift: (B or 1, C, h, w), of the type of x."""
    return _NormSilu.apply(x, scale, shift, groups, eps)


def channel_statistics(pixels: Tensor, origin: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean of the group, and one over its deviation, for each channel: (B, C) float32. pixels: (B, H, W, C).

    origin: ``group_origin(pixels, groups)``.
    """
    count = pixels[0].numel() // groups
    total, squares = (rows.sum(1) for rows in _row_sums(pixels, origin))  # (B, C)
    mean = total.unflatten(1, (groups, -1)).sum(2, keepdim=True) / count  # (B, G, 1)
    variance = squares.unflatten(1, (groups, -1)).sum(2, keepdim=True) / count - mean.square()
    deviation = torch.rsqrt(variance.clamp(min=0.0) + eps)
    shape = (len(pixels), groups, pixels.shape[3] // groups)
    return mean.expand(shape).flatten(1) + origin, deviation.expand(shape).flatten(1)


def _row_sums(pixels: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of the values and of their squares over each row, less the origin: (B, H, C) float32 each.

    Rows first, both sums in one pass, is the form of which the compiler makes vector code. Otherwise some rows go at a
    time, so that what lies between stays in the cache.
    """
    if torch.compiler.is_compiling():
        values = pixels.float() - origin[:, None, None]
        return values.sum(2), values.square().sum(2)
    sums = []
    for part in pixels.split(max(1, PIECE // pixels[:, 0].numel()), 1):
        values = part.float() - origin[:, None, None]
        sums.append((values.sum(2), values.square_().sum(2)))
    total, squares = (torch.cat(parts, 1) for parts in zip(*sums, strict=True))
    return total, squares


def group_origin(pixels: Tensor, groups: int) -> Tensor:
    """Return a value of each group near its mean, for each channel: (B, C) float32. pixels: (B, H, W, C).

    The variance is a difference of sums, of which few digits would be left if the values were far from zero.
    """
    height, width, channels = pixels.shape[1:]
    repeat = channels // groups
    some = pixels[:, :: max(1, height // 8), :: max(1, width // 8), ::repeat]  # one alone may be far from all others
    return some.float().mean((1, 2)).repeat_interleave(repeat, 1)


def cells(x: Tensor, grid: Sequence[int]) -> Tensor:
    """(..., H, W) -> (..., h, H/h, w, W/w), a view."""
    return x.unflatten(-1, (grid[1], -1)).unflatten(-3, (grid[0], -1))


def per_cell(values: Tensor) -> Tensor:
    """(..., h, w) -> (..., h, 1, w, 1): to meet ``cells``."""
    return values[..., :, None, :, None]


def _normalized(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Group norm without weights, and one over the deviation of each channel, (B, C)."""
    if x.dtype == torch.float32:  # PyTorch's own is exact to 1e-4 then
        pixels = x.permute(0, 2, 3, 1)
        mean, deviation = channel_statistics(pixels, group_origin(pixels, groups), groups, eps)
        factor = deviation[:, :, None, None]
        return torch.addcmul(-mean[:, :, None, None] * factor, x, factor), deviation
    y, _, deviation = torch.native_group_norm(x, None, None, len(x), x.shape[1], x[0, 0].numel(), groups, eps)
    return y, deviation.float().repeat_interleave(x.shape[1] // groups, 1)


class _GroupNorm(torch.autograd.Function):
    """Keeps the result, which what follows keeps as well, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, eps: float) -> Tensor:
        y, deviation = _normalized(x, groups, eps)
        ctx.groups = groups
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        y, deviation = ctx.saved_tensors
        result, scale = torch.empty_like(y), y.new_ones(len(y), y.shape[1], 1, 1)
        for piece in _pieces(gradient, y, scale, deviation, result):
            _norm_gradient(ctx.groups, *piece)
        return result, None, None


class _NormSilu(torch.autograd.Function):
    """Keeps the norm's result, and computes the SiLU's input again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        y, deviation = _normalized(x, groups, eps)
        ctx.groups = groups
        ctx.save_for_backward(y, deviation, scale, shift)
        return F.silu(_modulated(y, scale, shift), inplace=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        y, deviation, scale, shift = ctx.saved_tensors
        result, sums = torch.empty_like(y), []
        scales, shifts = scale.expand(len(y), -1, -1, -1), shift.expand(len(y), -1, -1, -1)
        for out, y_, scale_, shift_, deviation_, result_ in _pieces(gradient, y, scales, shifts, deviation, result):
            inner = torch.ops.aten.silu_backward(out, _modulated(y_, scale_, shift_))
            sums.append(_norm_gradient(ctx.groups, inner, y_, scale_, deviation_, result_))
        of_scale, of_shift = (torch.cat(s).sum_to_size(scale.shape).to(scale.dtype) for s in zip(*sums, strict=True))
        return result, of_scale, of_shift, None, None


def _pieces(gradient: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """As many images at a time as stay in the cache."""
    images = max(1, PIECE // gradient[0].numel())
    return zip(*(tensor.split(images) for tensor in (gradient, *others)), strict=True)


def _modulated(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``y * scale + shift``; y: (B, C, H, W); scale, shift: (B or 1, C, h, w)."""
    return torch.addcmul(per_cell(shift), cells(y, scale.shape[2:]), per_cell(scale)).flatten(4, 5).flatten(2, 3)


def _norm_gradient(
    groups: int, gradient: Tensor, y: Tensor, scale: Tensor, deviation: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Of ``y * scale + shift`` with y the norm of x: for x into ``out``; returns scale's and shift's.

    ``(g - mean(g) - y mean(g y)) / deviation`` with ``g = gradient * scale`` and the means over the group.
    gradient, y, out: (B, C, H, W). scale: (B, C, h, w). deviation: (B, C), one over it. Returns (B, C, h, w) float32.
    """
    repeat = y.shape[1] // groups
    grid, count = scale.shape[2:], y[0, :repeat].numel()

    def cell_sums(values: Tensor) -> Tensor:  # (B, C, h, w)
        if grid == (1, 1):
            return values.flatten(2).sum(2)[:, :, None, None].float()
        # One after the other is quicker than both at once.
        return values.unflatten(3, (grid[1], -1)).sum(4).unflatten(2, (grid[0], -1)).sum(3).float()

    def group_mean(sums: Tensor) -> Tensor:  # (B, C)
        total = (sums * scale).sum((2, 3)).unflatten(1, (groups, -1)).sum(2)
        return (total / count).repeat_interleave(repeat, 1)

    of_shift, of_scale = cell_sums(gradient), cell_sums(gradient * y)
    offset, slope = -deviation * group_mean(of_shift), -deviation * group_mean(of_scale)
    torch.addcmul(offset[:, :, None, None].to(y.dtype), y, slope[:, :, None, None].to(y.dtype), out=out)
    factor = (deviation[:, :, None, None] * scale).to(y.dtype)
    cells(out, grid).addcmul_(cells(gradient, grid), per_cell(factor))
    return of_scale, of_shift
