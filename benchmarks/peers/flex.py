"""Our decoder's windowed attention by FlexAttention, which reads keys where they lie instead of copying them by blocks.

``benchmarks/gpu.py --flex`` measures it. On a CPU it takes four times as long as copied blocks. The tokens are put into
the order of tiles of 8 x 16, one block of the kernel each, so that a tile attends to itself and its eight neighbours.
Window, relative bias and border are functions that are compiled into the kernel.

Shapes: B batch, h heads, R x C token grid, N = R * C, d head width, T tiles.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ssdd.nn import fast

ROWS, COLUMNS = 8, 16  # of a tile; both more than the radius, so that the neighbours are all that a query sees
TILE = ROWS * COLUMNS


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what ``ssdd.nn.ops.windowed_attention`` does, (B, h, N, d)."""
    (rows, columns), radius = grid, table.shape[0] // 2
    if radius >= ROWS:
        raise ValueError(f"expected a window radius below {ROWS}, found {radius}")
    tiles = (-(-rows // ROWS), -(-columns // COLUMNS))

    def bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        (y, x), (key_y, key_x) = (_place(index, tiles[1]) for index in (query, key))
        # Outside the window, where the mask hides the score, the index must still be one of the table's.
        dy, dx = ((d + radius).clamp(0, 2 * radius) for d in (y - key_y, x - key_x))
        return score + table[dy, dx, head]

    q, k, v = (_to_tiles(part, grid, tiles) for part in (q, k, v))
    mask = _block_mask(grid, tiles, radius, q.device)
    return _from_tiles(flex_attention(q, k, v, score_mod=bias, block_mask=mask), grid, tiles)


@contextmanager
def used() -> Iterator[None]:
    """Let decoders that are compiled inside use it on the grids where they attend by blocks.

    What runs as it is written does not: there FlexAttention makes all scores, N x N.
    """
    blockwise = fast.blockwise_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
        return (windowed_attention if torch.compiler.is_compiling() else blockwise)(q, k, v, table, grid)

    with mock.patch.object(fast, "blockwise_attention", attention):
        yield


def _place(index: Tensor, tiles_in_row: int) -> tuple[Tensor, Tensor]:
    """Return row and column of a token that is counted tile by tile."""
    tile, inside = index // TILE, index % TILE
    return tile // tiles_in_row * ROWS + inside // COLUMNS, tile % tiles_in_row * COLUMNS + inside % COLUMNS


def _to_tiles(x: Tensor, grid: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    """(B, h, N, d) -> (B, h, T * TILE, d), padded with zeros."""
    below, right = tiles[0] * ROWS - grid[0], tiles[1] * COLUMNS - grid[1]
    x = F.pad(x.unflatten(2, grid), (0, 0, 0, right, 0, below))
    x = x.unflatten(3, (tiles[1], COLUMNS)).unflatten(2, (tiles[0], ROWS))  # (B, h, tr, ROWS, tc, COLUMNS, d)
    return x.transpose(3, 4).flatten(2, 5)


def _from_tiles(x: Tensor, grid: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    """(B, h, T * TILE, d) -> (B, h, N, d)."""
    x = x.unflatten(2, (*tiles, ROWS, COLUMNS)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return x[:, :, : grid[0], : grid[1]].flatten(2, 3)


def _block_mask(grid: tuple[int, int], tiles: tuple[int, int], radius: int, device: torch.device) -> BlockMask:
    """Return which tiles a tile sees, and the window within them."""

    def window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        (y, x), (key_y, key_x) = (_place(index, tiles[1]) for index in (query, key))
        inside = ((y - key_y).abs() <= radius) & ((x - key_x).abs() <= radius)
        return inside & (key_y < grid[0]) & (key_x < grid[1])

    number = torch.arange(tiles[0] * tiles[1], device=device)
    row, column = number // tiles[1], number % tiles[1]
    seen = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)  # (T, T)
    counts = seen.sum(1, dtype=torch.int32)
    seen_first = seen.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return BlockMask.from_kv_blocks(
        counts[None, None], seen_first[None, None], BLOCK_SIZE=(TILE, TILE), mask_mod=window
    )
