"""Local self-attention on a token grid: a 15 x 15 window with a learned relative position bias.

Shapes: B batch, h heads, R x C token grid (rows, columns), N = R*C tokens in row-major order, d head width.

A query attends to the keys at most ``r`` rows and ``r`` columns away (``r = 7``); the window is cut off at
the border of the grid. To each score is added ``table[dy + r, dx + r, head]`` with ``(dy, dx)`` the query's
position minus the key's.

Two implementations, equal up to rounding:

- ``reference``: all N x N scores and a mask. Simple, and quickest where the grid is hardly larger than the window.
- ``blockwise``: the grid is cut into 8 x 8 blocks of queries. The keys a block can see are the 22 x 22 tokens
  around it, and relative positions are the same in every block, so one small bias serves all blocks and batch
  items. Time and memory grow linearly with N.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Implementation = Literal["auto", "reference", "blockwise"]

BLOCK = 8
"""Rows and columns of a query block. At most r + 1, so that a padded query still sees a real key."""

_DENSE_TOKENS = 512
"""Grids up to this size use the reference: a block sees 22 * 22 = 484 keys, so nothing is saved below that."""

_BLOCKS_AT_ONCE = 32
"""Whose scores a CPU keeps at a time: what fits its caches, or nearly."""

_OUTSIDE = -1e4
"""Score offset of keys outside the grid: finite in half precision, and its exponential is exactly zero."""


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    grid: tuple[int, int],
    implementation: Implementation = "auto",
) -> Tensor:
    """Softmax attention of every token to the window around it.

    Args:
        q, k, v: (B, h, N, d), tokens of the grid in row-major order.
        table: (2r+1, 2r+1, h) relative position bias, offset ``query - key`` from -r to +r per axis.
        grid: (R, C) rows and columns, ``R * C == N``; any size from 1 x 1.
        implementation: ``auto`` picks by the size of the grid.

    Returns:
        (B, h, N, d) in the dtype of ``v``.

    Raises:
        ValueError: the grid does not match the number of tokens, or the table is not square and odd.
    """
    rows, columns = grid
    if rows * columns != q.shape[2]:
        raise ValueError(f"expected {rows} x {columns} = {rows * columns} tokens, found {q.shape[2]}")
    if table.shape[0] != table.shape[1] or table.shape[0] % 2 == 0 or table.shape[2] != q.shape[1]:
        raise ValueError(
            f"expected a bias table (2r+1, 2r+1, {q.shape[1]}) for {q.shape[1]} heads, found {tuple(table.shape)}"
        )
    if implementation == "auto":
        implementation = "reference" if rows * columns <= _DENSE_TOKENS else "blockwise"
    attend = {"reference": _attend_reference, "blockwise": _attend_blockwise}[implementation]
    return attend(q, k, v, table, grid)


def window_bias(table: Tensor, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Bias of every query-key pair; minus infinity outside the window.

    Args:
        table: (2r+1, 2r+1, h).
        query: row and column of each query, two integer tensors (Q,).
        key: row and column of each key, two integer tensors (K,), in the same frame.

    Returns:
        (h, Q, K) in the dtype of the table.
    """
    radius = table.shape[0] // 2
    dy = query[0][:, None] - key[0][None, :]  # (Q, K)
    dx = query[1][:, None] - key[1][None, :]
    inside = (dy.abs() <= radius) & (dx.abs() <= radius)
    index = (dy.clamp(-radius, radius) + radius) * table.shape[1] + dx.clamp(-radius, radius) + radius
    bias = table.flatten(0, 1)[index].permute(2, 0, 1)  # (Q, K, h) -> (h, Q, K)
    return bias.masked_fill(~inside, float("-inf"))


def _positions(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each token of a grid in row-major order, two (rows*columns,) tensors."""
    index = torch.arange(rows * columns, device=device)
    return index // columns, index % columns


def _attend_reference(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    at = _positions(*grid, q.device)
    if q.dtype == torch.float16:  # products of large latents overflow there
        q, k = q.float(), k.float()
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # (B, h, N, N)
    weights = (scores + window_bias(table, at, at).float()).softmax(dim=-1)
    return weights.to(v.dtype) @ v


def _attend_blockwise(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    (batch, heads, _, width), (rows, columns), radius = q.shape, grid, table.shape[0] // 2
    below, right = -rows % BLOCK, -columns % BLOCK
    blocks = ((rows + below) // BLOCK, (columns + right) // BLOCK)
    seen = BLOCK + 2 * radius

    # One extra channel marks the keys outside the grid: every query carries a one there, such a key a large
    # negative number. So the border needs no mask of its own per block. More channels, of zeros, to a multiple of
    # eight: kernels on GPUs want that.
    extra = -(width + 1) % 8
    q = F.pad(q.unflatten(2, grid), (0, 0, 0, right, 0, below))
    q = F.pad(F.pad(q * width**-0.5, (0, 1), value=1.0), (0, extra))
    k = F.pad(k.unflatten(2, grid), (0, 1))
    k = torch.cat(
        [
            F.pad(k[..., :-1], (0, 0, radius, right + radius, radius, below + radius)),
            F.pad(k[..., -1:], (0, extra, radius, right + radius, radius, below + radius), value=_OUTSIDE),
        ],
        dim=-1,
    )
    v = F.pad(v.unflatten(2, grid), (0, 1 + extra, radius, right + radius, radius, below + radius))

    q = _blocks(q, blocks, BLOCK)  # (B * blocks, h, 64, d')
    k = _blocks(k, blocks, seen)  # (B * blocks, h, 484, d')
    v = _blocks(v, blocks, seen)  # (B * blocks, h, 484, d')
    query = tuple(p + radius for p in _positions(BLOCK, BLOCK, q.device))
    bias = window_bias(table, (query[0], query[1]), _positions(seen, seen, q.device))  # (h, 64, 484)
    attend = _attend_biased if q.device.type == "cpu" else _attend_fused
    out = attend(q, k, v, bias.to(q.dtype))[..., :width]

    out = out.unflatten(2, (BLOCK, BLOCK)).unflatten(0, (batch, *blocks))  # (B, br, bc, h, 8, 8, d)
    out = out.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)  # (B, h, R + below, C + right, d)
    return out[:, :, :rows, :columns].reshape(batch, heads, rows * columns, width)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """(blocks, h, Q, d) of queries that are scaled already, by the kernel of the device. bias: (h, Q, K)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)


def _attend_biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The same by matrix products, some blocks at a time: quicker than the fused kernel of CPUs in half precision."""
    bias = bias.repeat(min(len(q), _BLOCKS_AT_ONCE), 1, 1)  # (blocks * h, Q, K)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.baddbmm(bias[: len(q)], q, k.transpose(1, 2))
        return scores.softmax(dim=-1) @ v

    parts = zip(*(x.flatten(0, 1).split(len(bias)) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*part) for part in parts]).unflatten(0, q.shape[:2])


def _blocks(x: Tensor, blocks: tuple[int, int], size: int) -> Tensor:
    """(B, h, R', C', d) -> (B * blocks, h, size * size, d): squares of ``size``, one every ``BLOCK`` tokens."""
    x = x.unfold(2, size, BLOCK).unfold(3, size, BLOCK)  # (B, h, br, bc, d, size, size)
    x = x.permute(0, 2, 3, 1, 5, 6, 4)
    return x.reshape(x.shape[0] * blocks[0] * blocks[1], x.shape[3], size * size, x.shape[-1])
