"""Group norm and modulation with fewer passes over memory, by PyTorch's operations.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..whole_image import Moments
from .norm_gradients import cells, channel_statistics, group_origin, per_cell


def group_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None) -> Tensor:
    """Return ``norm(x) * scale + shift``; a map of one cell becomes the norm's weights."""
    uniform = scale.numel() == scale.shape[1]
    if moments is not None:
        if uniform:
            return moments.normalize(x, eps, scale.flatten(), shift.flatten())
        return modulate(moments.normalize(x, eps), scale, shift, overwrite=True)
    if uniform:
        return F.group_norm(x, groups, scale.flatten(), shift.flatten(), eps)
    return modulate(F.group_norm(x, groups, eps=eps), scale, shift, overwrite=True)


def group_norm_in_one_map(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, overwrite: bool = False
) -> Tensor:
    """Return the same with channels last, by statistics of our own and one map ``x * factor + offset``."""
    pixels = x.permute(0, 2, 3, 1)
    statistics = channel_statistics(pixels, group_origin(pixels, groups), groups, eps)
    mean, deviation = (v[:, :, None, None] for v in statistics)
    factor = deviation * scale
    return modulate(x, factor, shift - mean * factor, overwrite)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, overwrite: bool = False) -> Tensor:
    """Return ``x * scale + shift`` in one pass, in the memory of x where it may be overwritten.

    Args:
        x: (B, C, H, W).
        scale, shift: (B or 1, C, h, w), nearest neighbour.
        overwrite: nobody else needs x.
    """
    size, grid = x.shape[-2:], scale.shape[-2:]
    gradient = wants_gradient(x, scale, shift)
    in_place = overwrite and not gradient and x.dtype == scale.dtype == shift.dtype and not _is_traced()
    if grid == (1, 1) or grid == size:
        return torch.addcmul(shift, x, scale, out=x if in_place else None)
    if gradient or not whole_cells(x, scale):
        # The gradient of a repeated map is quicker this way.
        return torch.addcmul(F.interpolate(shift, size), x, F.interpolate(scale, size))
    blocks = cells(x, grid)
    out = torch.addcmul(per_cell(shift), blocks, per_cell(scale), out=blocks if in_place else None)
    return out.flatten(4, 5).flatten(2, 3)


def _is_traced() -> bool:
    """Return whether operations are recorded or transformed, which know no results in given memory."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def silu(x: Tensor) -> Tensor:
    """Return ``F.silu`` of a result that nobody else holds: in place, but where gradients need it."""
    return F.silu(x, inplace=not wants_gradient(x))


def whole_cells(x: Tensor, scale: Tensor) -> bool:
    """Return whether the level's pixels fall evenly on the cells of the latent grid."""
    return x.shape[2] % scale.shape[2] == 0 and x.shape[3] % scale.shape[3] == 0


def wants_gradient(*tensors: Tensor) -> bool:
    """Return whether a graph is being made of what is done to them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
