"""Windowed attention by blocks of queries, in time and memory that grow linearly with the tokens.

The grid is cut into 8 x 8 blocks of queries. The keys that a block can see are the 22 x 22 tokens around it (r = 7),
and relative positions are the same in every block, so one small bias serves all blocks and batch items.

Shapes: B batch, h heads, R x C token grid (rows, columns), N = R*C tokens in row-major order, d head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import positions, window_bias

BLOCK = 8
"""Rows and columns of a query block. At most r + 1, so that a padded query still sees a real key."""

_BLOCKS_AT_ONCE = 32
"""Whose scores a CPU keeps at a time: what fits its caches, or nearly."""

OUTSIDE = -1e4
"""Score offset of keys outside the grid: finite in half precision, and its exponential is exactly zero."""


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what ``ops.windowed_attention`` does, (B, h, N, d)."""
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
            F.pad(k[..., -1:], (0, extra, radius, right + radius, radius, below + radius), value=OUTSIDE),
        ],
        dim=-1,
    )
    v = F.pad(v.unflatten(2, grid), (0, 1 + extra, radius, right + radius, radius, below + radius))

    query = tuple(p + radius for p in positions(BLOCK, BLOCK, q.device))
    bias = window_bias(table, (query[0], query[1]), positions(seen, seen, q.device))  # (h, 64, 484)
    attend = _attend_some_at_a_time if q.device.type == "cpu" else _attend_fused
    out = attend(_squares(q, BLOCK), _squares(k, seen), _squares(v, seen), bias.to(q.dtype))[..., :width]

    out = out.unflatten(2, (BLOCK, BLOCK)).unflatten(0, (batch, *blocks))  # (B, br, bc, h, 8, 8, d)
    out = out.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)  # (B, h, R + below, C + right, d)
    return out[:, :, :rows, :columns].reshape(batch, heads, rows * columns, width)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return the attention of squares of queries that are scaled already, (B * blocks, h, Q, d).

    Args:
        q, k, v: (B, h, br, bc, d, side, side), views of overlapping squares.
        bias: (h, Q, K).
    """
    q, k, v = map(_blocks, (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)


def _attend_some_at_a_time(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return the same by matrix products, some blocks at a time.

    Quicker than the fused kernel of CPUs in half precision; and without gradients keys and values of all blocks, 7.6
    times as many as tokens, are never there at once.
    """
    columns = min(q.shape[3], _BLOCKS_AT_ONCE)
    rows = min(q.shape[2], _BLOCKS_AT_ONCE // columns)
    bias = bias.repeat(rows * columns, 1, 1)  # (blocks * h, Q, K)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[1]
        q, k, v = (_blocks(x).flatten(0, 1) for x in (q, k, v))
        scores = torch.baddbmm(bias[: len(q)], q, k.transpose(1, 2))
        return (scores.softmax(dim=-1) @ v).unflatten(0, (-1, heads))

    parts = [(q, k, v)]
    for size, dim in ((1, 0), (rows, 2), (columns, 3)):  # images, then rows, then columns of blocks
        parts = [part for whole in parts for part in zip(*(x.split(size, dim) for x in whole), strict=True)]
    return torch.cat([attend(*part) for part in parts])


def _squares(x: Tensor, side: int) -> Tensor:
    """(B, h, R', C', d) -> (B, h, br, bc, d, side, side): a view of squares, one every ``BLOCK`` tokens."""
    return x.unfold(2, side, BLOCK).unfold(3, side, BLOCK)


def _blocks(squares: Tensor) -> Tensor:
    """(B, h, br, bc, d, side, side) -> (B * br * bc, h, side * side, d)."""
    return squares.permute(0, 2, 3, 1, 5, 6, 4).flatten(4, 5).flatten(0, 2)
