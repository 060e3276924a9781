"""Group norm, affine map and SiLU: what stands before every convolution.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1).

``norm_silu`` is the plain version, for any device; its gradients on a CPU are those of ``norm_autograd``.
``fused_norm_silu`` is for a CPU with a C++ compiler: the kernels of ``norm_compiled``. Both give the same but for
rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import norm_autograd, norm_compiled
from .norm_autograd import cells, channel_statistics, group_origin, per_cell
from .whole_image import Moments


def norm_silu(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return ``silu(norm(x) * scale + shift)`` with the group norm without weights, (B, C, H, W).

    Args:
        x: (B, C, H, W).
        groups: G.
        scale, shift: (B or 1, C, h, w), any grid; nearest neighbour.
        eps: added to the variance.
        moments: to use instead of those of each image of x.
    """
    if moments is None and wants_gradient(x, scale, shift) and _own_path(x) and _whole_cells(x, scale):
        return norm_autograd.norm_silu(x, groups, scale.to(x.dtype), shift.to(x.dtype), eps)
    return silu(affine_group_norm(x, groups, scale, shift, eps, moments))


def affine_group_norm(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return ``norm(x) * scale + shift``; arguments as for ``norm_silu``."""
    uniform = scale.numel() == scale.shape[1]  # the same everywhere: weights of the norm
    if moments is not None:
        if uniform:
            return moments.normalize(x, eps, scale.flatten(), shift.flatten())
        return modulate(moments.normalize(x, eps), scale, shift)
    if _own_path(x):
        if wants_gradient(x):
            return modulate(norm_autograd.group_norm(x, groups, eps), scale, shift)
        if x.dtype == torch.float32:
            pixels = x.permute(0, 2, 3, 1)
            statistics = channel_statistics(pixels, group_origin(pixels, groups), groups, eps)
            mean, deviation = (v[:, :, None, None] for v in statistics)
            factor = deviation * scale
            return modulate(x, factor, shift - mean * factor)
    if uniform:
        return F.group_norm(x, groups, scale.flatten(), shift.flatten(), eps)
    return modulate(F.group_norm(x, groups, eps=eps), scale, shift)


def _own_path(x: Tensor) -> bool:
    """Whether channels are last, on a CPU: PyTorch's own norm is exact to 1e-4 there, and its gradient slow."""
    return x.device.type == "cpu" and not x.is_contiguous() and not torch.compiler.is_compiling()


def _whole_cells(x: Tensor, scale: Tensor) -> bool:
    """Whether the level's pixels fall evenly on the cells of the latent grid."""
    return x.shape[2] % scale.shape[2] == 0 and x.shape[3] % scale.shape[3] == 0


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` in one pass; x: (B, C, H, W); scale, shift: (B or 1, C, h, w), nearest neighbour."""
    size, grid = x.shape[-2:], scale.shape[-2:]
    if grid == (1, 1) or grid == size:
        return torch.addcmul(shift, x, scale)
    if wants_gradient(x, scale, shift) or not _whole_cells(x, scale):
        # The gradient of a repeated map is quicker this way.
        return torch.addcmul(F.interpolate(shift, size), x, F.interpolate(scale, size))
    return torch.addcmul(per_cell(shift), cells(x, grid), per_cell(scale)).flatten(4, 5).flatten(2, 3)


def silu(x: Tensor) -> Tensor:
    """``F.silu`` of a result that nobody else holds: in place, but where gradients need it."""
    return F.silu(x, inplace=not wants_gradient(x))


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a graph is being made of what is done to them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def fused_norm_silu(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return ``norm_silu``, quicker on a CPU, where it can be: channels last, whole cells, no more than float32."""
    compiled = _own_path(x) and _whole_cells(x, scale) and x.dtype != torch.float64
    if not compiled or not x.is_contiguous(memory_format=torch.channels_last):
        return norm_silu(x, groups, scale, shift, eps, moments)
    if moments is not None:
        return norm_compiled.norm_silu_by_moments(x, *moments.per_channel(x.shape[1]), scale, shift, eps)
    if wants_gradient(x, scale, shift):
        return norm_compiled.norm_silu(x, groups, scale, shift, eps)
    return norm_compiled.norm_silu_without_gradient(x, groups, scale, shift, eps)
