"""What the networks are made of, each operation as the paper would write it.

``nn.fast`` has quick equals of most of them; ``nn.fast.reference()`` runs these.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1); n heads,
R x S token grid in row-major order, N = R * S tokens, d width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .whole_image import Moments


def group_norm(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return ``norm(x) * scale + shift``, the group norm without weights, (B, C, H, W).

    Args:
        x: (B, C, H, W).
        groups: G.
        scale, shift: (B or 1, C, h, w), any grid: each pixel takes its nearest cell's.
        eps: added to the variance.
        moments: of the groups, to use instead of those of each image of x.
    """
    y = F.group_norm(x, groups, eps=eps) if moments is None else moments.normalize(x, eps)
    size = (x.shape[2], x.shape[3])
    return y * resize(scale, size) + resize(shift, size)


def norm_silu(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return the SiLU of ``group_norm``, (B, C, H, W)."""
    return F.silu(group_norm(x, groups, scale, shift, eps, moments))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return x at another size, (B, C, H, W), where each pixel takes its nearest cell's values.

    Args:
        x: (B, C, h, w).
        size: (H, W).
    """
    return F.interpolate(x, size, mode="nearest")


def downsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a 3x3 convolution of stride 2.

    Args:
        x: (B, C, H, W).
        weight, bias: (C', C, 3, 3), (C',).

    Returns:
        (B, C', ceil(H/2), ceil(W/2)).
    """
    return F.conv2d(x, weight, bias, stride=2, padding=1)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Return a 3x3 convolution of x repeated to twice its size and cut to ``size``.

    Args:
        x: (B, C, ceil(H/2), ceil(W/2)).
        weight, bias: (C', C, 3, 3), (C',).
        size: (H, W).
    """
    twice = F.interpolate(x, scale_factor=2.0, mode="nearest")[..., : size[0], : size[1]]
    return F.conv2d(twice, weight, bias, padding=1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the softmax attention of every token to the window around it, (B, n, N, d) in the dtype of v.

    A query attends to the keys at most r rows and r columns away; the window is cut off at the border of the grid. To
    each score is added ``table[dy + r, dx + r, head]`` with (dy, dx) the query's position minus the key's.

    Args:
        q, k, v: (B, n, N, d).
        table: (2r+1, 2r+1, n) relative position bias.
        grid: (R, S).
    """
    places = positions(*grid, q.device)
    if q.dtype == torch.float16:  # products of large latents overflow there
        q, k = q.float(), k.float()
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # (B, n, N, N)
    weights = (scores + window_bias(table, places, places).float()).softmax(dim=-1)
    return weights.to(v.dtype) @ v


def window_bias(table: Tensor, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Return the bias of every pair of a query and a key, minus infinity outside the window.

    Args:
        table: (2r+1, 2r+1, n).
        query: row and column of each query, two integer tensors (Q,).
        key: row and column of each key, two integer tensors (K,), in the same frame.

    Returns:
        (n, Q, K) in the dtype of the table.
    """
    radius = table.shape[0] // 2
    dy = query[0][:, None] - key[0][None, :]  # (Q, K)
    dx = query[1][:, None] - key[1][None, :]
    inside = (dy.abs() <= radius) & (dx.abs() <= radius)
    index = (dy.clamp(-radius, radius) + radius) * table.shape[1] + dx.clamp(-radius, radius) + radius
    bias = table.flatten(0, 1)[index].permute(2, 0, 1)  # (Q, K, n) -> (n, Q, K)
    return bias.masked_fill(~inside, float("-inf"))


def positions(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and column of each token of a grid in row-major order, two (N,) tensors."""
    index = torch.arange(rows * columns, device=device)
    return index // columns, index % columns
