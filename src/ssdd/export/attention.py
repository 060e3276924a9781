"""Windowed attention in blocks of queries, in operations that take symbolic sizes.

Shapes: B batch, h heads, R x C token grid, D = h*d width, K x L blocks of 8 x 8 queries, each of which sees S x S keys
(22 x 22 for a window of 15; see ``nn.fast.attention``).

Blocks are taken by index, rows and then columns. An index beyond the grid is moved to the nearest token, and a channel
of its own takes such a key out of the softmax. Memory grows linearly with the grid, whatever its size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.fast.attention import BLOCK
from ..nn.ops import window_bias

_OUTSIDE = -1e4
"""Score offset of keys outside the grid: finite in half precision, and its exponential is exactly zero."""


@dataclass(frozen=True)
class Blocks:
    """Which tokens of a grid each block takes; the same for all layers.

    rows: (K, S) and columns: (L, S), within the grid. outside: (K, L, S*S), true where there is no such token.
    """

    rows: Tensor
    columns: Tensor
    outside: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int], around: int, device: torch.device) -> "Blocks":
        """All blocks of a grid (R, C), each with the tokens at most ``around`` rows and columns away."""
        rows, columns = (_block_indices(length, around, device) for length in grid)
        off_rows, off_columns = (_outside(at, length) for at, length in zip((rows, columns), grid, strict=True))
        outside = off_rows[:, None, :, None] | off_columns[None, :, None, :]  # (K, L, S, S)
        rows, columns = (at.clamp(min=0).clamp(max=n - 1) for at, n in zip((rows, columns), grid, strict=True))
        return cls(rows, columns, outside.flatten(2))

    def take(self, x: Tensor, heads: int) -> Tensor:
        """(B, R, C, D) -> (B, K, L, h, S*S, d), the tokens of each block in row-major order."""
        (blocks_down, size), blocks_across, width = self.rows.shape, self.columns.shape[0], x.shape[-1]
        x = x.index_select(1, self.rows.flatten()).index_select(2, self.columns.flatten())
        x = x.reshape(x.shape[0], blocks_down, size, blocks_across, size, heads, width // heads)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)


def block_bias(table: Tensor) -> Tensor:
    """Position bias of a block's queries and the keys that it sees, (h, 64, S*S): the same in every block.

    table: (2r+1, 2r+1, h). Minus infinity outside the window.
    """
    radius = table.shape[0] // 2
    seen = BLOCK + 2 * radius
    queries, keys = (torch.arange(n, device=table.device) for n in (BLOCK**2, seen**2))
    query = (queries // BLOCK + radius, queries % BLOCK + radius)
    return window_bias(table, query, (keys // seen, keys % seen))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, queries: Blocks, keys: Blocks) -> Tensor:
    """Softmax attention of every token to the window around it: ``nn.ops`` in one way for all grids.

    Args:
        q, k, v: (B, R, C, D), heads side by side in D.
        bias: (h, 64, S*S), see ``block_bias``.
        queries, keys: the blocks of the grid, with 0 and r tokens around them.

    Returns:
        (B, R, C, D).
    """
    (batch, rows, columns, width), heads = q.shape, bias.shape[0]
    down, across = queries.rows.shape[0], queries.columns.shape[0]
    q = queries.take(q * (width // heads) ** -0.5, heads)  # (B, K, L, h, 64, d)
    k, v = keys.take(k, heads), keys.take(v, heads)  # (B, K, L, h, S*S, d)
    # Every query has a one where a key outside the grid has a large negative number.
    offset = (keys.outside * _OUTSIDE).to(k.dtype)[None, :, :, None, :, None]
    q = torch.cat([q, torch.ones_like(q[..., :1])], dim=-1)
    k = torch.cat([k, offset.expand_as(k[..., :1])], dim=-1)

    scores = q @ k.transpose(-1, -2) + bias  # (B, K, L, h, 64, S*S)
    out = scores.softmax(dim=-1) @ v  # (B, K, L, h, 64, d)
    out = out.unflatten(4, (BLOCK, BLOCK)).permute(0, 1, 4, 2, 5, 3, 6)  # (B, K, 8, L, 8, h, d)
    out = out.reshape(batch, down * BLOCK, across * BLOCK, width)
    return first(first(out, 1, rows), 2, columns)


def first(x: Tensor, axis: int, length: int) -> Tensor:
    """The first ``length`` of an axis, by index: a slice would ask whether there are so many."""
    return x.index_select(axis, torch.arange(length, device=x.device))


def _block_indices(length: int, around: int, device: torch.device) -> Tensor:
    """(blocks, BLOCK + 2 * around) of one axis, beyond its ends too."""
    # Not -(-length // BLOCK): the exported division rounds towards zero.
    blocks = (length + BLOCK - 1) // BLOCK
    begin = torch.arange(blocks, device=device) * BLOCK - around
    return begin[:, None] + torch.arange(BLOCK + 2 * around, device=device)


def _outside(index: Tensor, length: int) -> Tensor:
    return (index < 0) | (index >= length)
